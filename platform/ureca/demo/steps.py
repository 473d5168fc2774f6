"""Headings and durations of a job with several steps."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Steps:
    """Prints a heading for each step with the estimated remaining time, and records the seconds it took.

    `minutes` maps the steps in order to the minutes each usually takes on two cores.
    """

    def __init__(self, minutes: dict[str, float]) -> None:
        self._minutes = minutes
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        names = list(self._minutes)
        number = names.index(name)
        left = sum(self._minutes[later] for later in names[number:])
        print(
            f"\n[{number + 1}/{len(names)}] {what}  (about {left:.0f} min left on two cores)",
            file=sys.stderr,
            flush=True,
        )
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
