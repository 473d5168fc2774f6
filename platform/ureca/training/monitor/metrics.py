"""Metrics of a training run (metrics.jsonl): one line per step, written by worker 0, read by the driver.

A step that is repeated after an interruption replaces its earlier line.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ureca.storage.files import to_json

FILE = "metrics.jsonl"

_ENDS_SHARE = 0.05
"""Share of the steps over which first and last loss are averaged."""


class MetricsWriter:
    """Appends steps to a run's metrics.jsonl, continuing after `first_step - 1`."""

    def __init__(self, directory: str | Path, *, first_step: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Open the file. It counts steps from 1; `first_step` is 0-based, so that many steps are done."""
        path = Path(directory) / FILE
        done = [line for line in read_metrics(path) if line["step"] <= first_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(to_json(line) + "\n" for line in done), encoding="utf-8")
        os.replace(partial, path)
        self._before = float(done[-1]["seconds"]) if done else 0.0
        self._clock = clock
        self._started = clock()
        self._file = path.open("a", encoding="utf-8")

    def write(self, **metrics: Any) -> None:
        """Append a line: seconds of training so far, then the metrics (`step` and `loss` among them)."""
        seconds = round(self._before + self._clock() - self._started, 3)
        self._file.write(to_json({"seconds": seconds, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the complete lines of a metrics.jsonl; a last line cut off by a kill is skipped."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def last_line(path: str | Path) -> dict[str, Any] | None:
    """Read the newest complete line without reading the entire file."""
    path = Path(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        text = file.read()
    for line in reversed(text.splitlines()):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue
    return None


def loss_first_last(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the mean loss of the first and of the last twentieth of the steps (at least one step each)."""
    losses = [float(line["loss"]) for line in lines]
    ends = max(1, round(len(losses) * _ENDS_SHARE))
    return sum(losses[:ends]) / ends, sum(losses[-ends:]) / ends
