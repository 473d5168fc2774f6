"""Tail of a running training, for the driver: new metrics lines and worker events, for progress and trackers.

worker 0  ──> metrics.jsonl, eval/step_…  ──> MetricsTailer    ──> one progress line
                                                               ──> TensorBoard, MLflow, Weights & Biases
          ──> worker_log.jsonl            ──> WorkerLogReader  ──> messages
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
from ureca.storage.local import JsonlTail
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
"""Tracker group of a metric; all others belong to "throughput"."""


class MetricsTailer:
    """Forwards each new step of a run to the trackers, once and in order."""

    def __init__(self, directory: str | Path, trackers: Mapping[str, Tracker], *, done: int) -> None:
        """Tail a run's folder; `done` steps were forwarded by an earlier start of the driver."""
        self._directory, self._trackers = Path(directory), dict(trackers)
        self._step = done
        self._lines = JsonlTail(self._directory / FILE)  # worker 0 rewrites the file when it resumes

    def poll(self) -> dict[str, Any] | None:
        """Forward new steps; return the newest line, or None without any."""
        newest = None
        for line in self._lines.new():
            # A step repeated after a worker died has the same metrics.
            if line["step"] <= self._step:
                continue
            newest, self._step = line, line["step"]
            self._hand_on(line)
        return newest

    def close(self) -> None:
        for name in list(self._trackers):
            self._try(name, "close")

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
        """Call a tracker; drop it after an error, because the run's own files hold everything."""
        tracker = self._trackers.get(name)
        if tracker is None:
            return
        try:
            getattr(tracker, method)(*arguments)
        except Exception as error:  # any type: raised by a third-party client or the network
            del self._trackers[name]
            print(f"train  {name} failed and is disabled: {type(error).__name__}: {error}", file=sys.stderr)


@contextmanager
def tail_metrics(
    directory: Path, trackers: tuple[str, ...], settings: Mapping[str, Any], done: int
) -> Iterator[MetricsTailer]:
    """Open a tailer with the given trackers; at exit forward the last lines and close it.

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
    """Flatten a metrics line for trackers, in the groups train/, throughput/ and heldout/."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if name == "heldout":
            found.update({f"heldout/{key}": float(each) for key, each in value.items()})
        elif name not in ("step", "num_steps") and isinstance(value, int | float):
            found[f"{_GROUPS.get(name, 'throughput')}/{name}"] = float(value)
    return found


def progress_fields(line: Mapping[str, Any]) -> list[str]:
    """Format a metrics line for the progress line."""
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
    """Append an event to the worker log. A full disk loses it; the run reports that error itself."""
    with contextlib.suppress(OSError), (Path(directory) / WORKER_LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(to_json({"time": round(time.time(), 3), "text": text}) + "\n")


class WorkerLogReader:
    """Reads the worker log's events from now on."""

    def __init__(self, directory: str | Path) -> None:
        self._events = JsonlTail(Path(directory) / WORKER_LOG_FILE, from_end=True)

    def new(self) -> list[str]:
        """Return the events since the last call; an incomplete line is left for the next call."""
        return [str(event["text"]) for event in self._events.new()]
