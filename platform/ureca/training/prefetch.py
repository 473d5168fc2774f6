"""Do the next things in background threads while the present one is used; give them out in their order."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Prefetch"]

T = TypeVar("T")


class Prefetch(Generic[T]):
    """The results of calls, in the order of the calls, some of them made ahead.

    What a call raises is raised where its result is due: errors come in the order of the calls too.
    """

    def __init__(self, calls: Iterator[Callable[[], T]], *, threads: int = 1) -> None:
        """`threads`: that make calls; with 0 each is made when it is due."""
        self._calls = calls
        self._waiting: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch") if threads else None
        self.waited_seconds = 0.0
        """That `next` has taken so far: the time that whoever uses the results has waited for them."""

    def next(self, *, ahead: int) -> T:
        """The next result; `ahead` more wait at most, or are being made, when it is given out.

        Raises:
            StopIteration: there are no more.
        """
        started = time.monotonic()
        try:
            if self._pool is None:
                return next(self._calls)()
            self._fill(1 + ahead)
            if not self._waiting:
                raise StopIteration
            return self._waiting.popleft().result()
        finally:
            self.waited_seconds += time.monotonic() - started

    def _fill(self, number: int) -> None:
        assert self._pool is not None
        while len(self._waiting) < number:
            call = next(self._calls, None)
            if call is None:
                return
            self._waiting.append(self._pool.submit(call))

    def close(self) -> None:
        """Leave off: what has not begun is not begun, and what has is waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
