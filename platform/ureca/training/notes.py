"""notes.jsonl of a training run: what a person should know beside the figures, told by a worker, shown by the driver.

Workers may be on other machines, and what they print stays there. Where these have no file system in common, s3_runs.py
carries it.
"""

import contextlib
import json
import time
from pathlib import Path

from ureca.io import to_json

__all__ = ["NOTES_FILE", "Notes", "note"]

NOTES_FILE = "notes.jsonl"


def note(directory: str | Path, text: str) -> None:
    """Append one line. A disk that is full loses it: what goes on then is told by other means."""
    with contextlib.suppress(OSError), (Path(directory) / NOTES_FILE).open("a", encoding="utf-8") as file:
        file.write(to_json({"time": round(time.time(), 3), "text": text}) + "\n")


class Notes:
    """Reads those of a run that are written from now on."""

    def __init__(self, directory: str | Path) -> None:
        self._path = Path(directory) / NOTES_FILE
        self._read = self._path.stat().st_size if self._path.is_file() else 0

    def new(self) -> list[str]:
        """The texts since the last call; a line that is still being written is left for the next."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._read += len(whole) + 1
        return [str(json.loads(line)["text"]) for line in whole.splitlines()]
