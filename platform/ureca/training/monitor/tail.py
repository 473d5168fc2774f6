"""The driver's view of a running training: new lines of metrics.jsonl, shown and handed on to the trackers.

worker 0  ──> metrics.jsonl, eval/step_…  ──> MetricsTailer  ──> one line of progress
                                                           ──> TensorBoard, MLflow, Weights & Biases
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ureca.storage.files import to_json
from ureca.training.monitor.inloop_eval import CAPTIONS_FILE, eval_directory
from ureca.training.monitor.metrics import FILE
from ureca.training.monitor.trackers import Tracker, open_trackers

_GROUPS = {
    "loss": "train",
    "learning_rate": "train",
    "grad_norm": "train",
    "num_tokens": "train",
    "num_regions": "train",
}
"""Group of a figure in a tracker; the others are of the throughput panel."""


class MetricsTailer:
    """Hands each new step of a run on, once and in order."""

    def __init__(self, directory: str | Path, trackers: Mapping[str, Tracker], *, done: int) -> None:
        """`done`: steps that an earlier start of the driver has handed on already."""
        self._directory, self._trackers = Path(directory), dict(trackers)
        self._step = done
        self._inode: int | None = None
        self._offset = 0

    def poll(self) -> dict[str, Any] | None:
        """Hand on what is new; returns the newest line, or None where nothing is new."""
        newest = None
        for line in self._new_lines():
            # A step that is done again after a worker died has the same figures as before.
            if line["step"] <= self._step:
                continue
            newest, self._step = line, line["step"]
            self._hand_on(line)
        return newest

    def close(self) -> None:
        for name in list(self._trackers):
            self._try(name, "close")

    def _new_lines(self) -> Iterator[dict[str, Any]]:
        path = self._directory / FILE
        try:
            inode = path.stat().st_ino
            with path.open("rb") as file:
                if inode != self._inode:  # the first worker writes the file anew where it goes on
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.splitlines():
            try:
                yield json.loads(text)
            except ValueError:
                continue

    def _hand_on(self, line: dict[str, Any]) -> None:
        step = line["step"]
        pictures = list(self._pictures(step)) if "heldout" in line else []
        for name in list(self._trackers):
            self._try(name, "scalars", step, scalars_of(line))
            for picture in pictures:
                self._try(name, "picture", step, *picture)

    def _pictures(self, step: int) -> Iterator[tuple[str, np.ndarray, str]]:
        folder = eval_directory(self._directory, step)
        texts: dict[int, list[str]] = {}
        captions = folder / CAPTIONS_FILE
        for text in captions.read_text(encoding="utf-8").splitlines() if captions.is_file() else ():
            record = json.loads(text)
            texts.setdefault(record["image"], []).append(f"1. {record['caption']} (label: {record['reference']})")
        for path in sorted(folder.glob("image_*.jpg")):
            number = int(path.stem.removeprefix("image_"))
            with Image.open(path) as picture:
                yield f"heldout/{path.stem}", np.asarray(picture.convert("RGB")), "\n".join(texts.get(number, ()))

    def _try(self, name: str, method: str, *arguments: Any) -> None:
        """A tracker that fails is left out from there on: the run's own files hold everything."""
        tracker = self._trackers.get(name)
        if tracker is None:
            return
        try:
            getattr(tracker, method)(*arguments)
        except Exception as error:  # of any kind: it comes from someone else's client, or the network
            del self._trackers[name]
            print(f"train  {name} is left out from here on: {type(error).__name__}: {error}", file=sys.stderr)


@contextmanager
def tail_metrics(
    directory: Path, trackers: tuple[str, ...], settings: Mapping[str, Any], done: int
) -> Iterator[MetricsTailer]:
    """A follower with the plan's trackers, which at the end gets what has come last, and is closed in any case.

    Raises:
        ConfigError: a tracker can't start.
    """
    tailer = MetricsTailer(directory, open_trackers(trackers, directory, settings, done=done), done=done)
    try:
        yield tailer
    finally:
        tailer.poll()
        tailer.close()


def scalars_of(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as a tracker's figures, grouped: train/, throughput/, heldout/."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if name == "heldout":
            found.update({f"heldout/{key}": float(each) for key, each in value.items()})
        elif name not in ("step", "num_steps") and isinstance(value, int | float):
            found[f"{_GROUPS.get(name, 'throughput')}/{name}"] = float(value)
    return found


def progress_fields(line: Mapping[str, Any]) -> list[str]:
    """What a line of progress says of a step."""
    rate = line["regions_per_second"]
    notes = [
        f"loss {line['loss']:.4g}",
        f"grad {line['grad_norm']:.3g}",
        f"{rate:,.0f} regions/s" if rate >= 100 else f"{rate:.3g} regions/s",
    ]
    for name, label in (("mfu", "MFU"), ("padding_share", "padding"), ("data_wait_share", "data wait")):
        if line.get(name) is not None:
            notes.append(f"{label} {line[name]:.0%}")
    return notes


WORKER_LOG_FILE = "worker_log.jsonl"


def log_event(directory: str | Path, text: str) -> None:
    """Append one line. A disk that is full loses it: what goes on then is told by other means."""
    with contextlib.suppress(OSError), (Path(directory) / WORKER_LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(to_json({"time": round(time.time(), 3), "text": text}) + "\n")


class WorkerLogReader:
    """Reads those of a run that are written from now on."""

    def __init__(self, directory: str | Path) -> None:
        self._path = Path(directory) / WORKER_LOG_FILE
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
