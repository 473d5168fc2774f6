"""Local disk: folders that appear atomically, and tails of growing JSON-lines files."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_folder(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a new temporary folder next to `target` that replaces it when the body succeeds.

    If the body raises, the temporary folder is removed and `target` is unchanged. Without `overwrite`, only a missing
    or empty `target` is replaced.

    Raises:
        OSError: `target` can't be replaced, e.g. not empty without `overwrite`.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if overwrite:
            shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)  # fails on a folder that is not empty
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class JsonlTail:
    """Reader of the new complete lines of a growing JSON-lines file.

    An incomplete last line is left for the next call. A file that another process replaced is read from its start.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        """Tail `path`, which need not exist yet; `from_end` skips the present content."""
        self._path = path
        self._inode: int | None = None
        self._offset = 0
        if from_end and path.is_file():
            status = path.stat()
            self._inode, self._offset = status.st_ino, status.st_size

    def new(self) -> list[dict[str, Any]]:
        """Return the records since the last call; lines that are not JSON are skipped."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        records = []
        for line in complete.splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records
