"""Utilization of an engine: regions in progress, integrated over time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Utilization:
    """Utilization over a period."""

    seconds: float
    busy_seconds: float
    """Seconds with at least one region in progress."""
    region_seconds: float
    """Region-seconds in progress; divided by `busy_seconds`, the mean number of concurrent regions."""


class LoadMeter:
    """Meter of the regions in progress. For one event loop."""

    def __init__(self, slots: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start a meter. `slots`: further regions wait and are not counted; 0: no limit."""
        self._slots, self._clock = slots, clock
        self._inside = 0
        self._since: float | None = None
        self._seconds = self._busy = self._regions = 0.0

    def begin(self) -> None:
        """Start counting: the engine is ready."""
        self._since = self._clock()

    @contextmanager
    def regions(self, number: int = 1) -> Iterator[None]:
        """Count `number` more regions as in progress while the body runs."""
        self._advance()
        self._inside += number
        try:
            yield
        finally:
            self._advance()
            self._inside -= number

    def take(self) -> Utilization:
        """Return the utilization since the last call."""
        self._advance()
        taken = Utilization(self._seconds, self._busy, self._regions)
        self._seconds = self._busy = self._regions = 0.0
        return taken

    def _advance(self) -> None:
        if self._since is None:
            return
        now = self._clock()
        passed, self._since = now - self._since, now
        self._seconds += passed
        self._busy += passed * (self._inside > 0)
        self._regions += passed * min(self._inside, self._slots or self._inside)
