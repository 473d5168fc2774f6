"""How busy an engine is: how many regions it works on, integrated over time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Busy:
    """Of some stretch of time."""

    seconds: float
    busy_seconds: float
    """With at least one region under way."""
    region_seconds: float
    """The sum over the regions under way; over `busy_seconds` it is how many there were at once, on average."""


class Load:
    """Counts the regions that are under way. For one event loop."""

    def __init__(self, places: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`places`: regions beyond as many wait for others and are not counted; 0: no limit."""
        self._places, self._clock = places, clock
        self._inside = 0
        self._since: float | None = None
        self._seconds = self._busy = self._regions = 0.0

    def begin(self) -> None:
        """The engine is ready: time counts from now on."""
        self._since = self._clock()

    @contextmanager
    def regions(self, number: int = 1) -> Iterator[None]:
        """As many more regions are under way while the body runs."""
        self._advance()
        self._inside += number
        try:
            yield
        finally:
            self._advance()
            self._inside -= number

    def take(self) -> Busy:
        """What has been counted since it was last asked for."""
        self._advance()
        taken = Busy(self._seconds, self._busy, self._regions)
        self._seconds = self._busy = self._regions = 0.0
        return taken

    def _advance(self) -> None:
        if self._since is None:
            return
        now = self._clock()
        passed, self._since = now - self._since, now
        self._seconds += passed
        self._busy += passed * (self._inside > 0)
        self._regions += passed * min(self._inside, self._places or self._inside)
