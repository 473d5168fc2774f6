"""Admission control: limit concurrent images per worker; run suspected crashers with few others or alone.

While a suspect is admitted, the worker holds no more images than the suspect's own limit. Images are admitted in
arrival order, so newer images can't starve one that waits to be alone.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class AdmissionLimiter:
    """Limits the images that are in progress in one process."""

    def __init__(self, max_images: int) -> None:
        self.max_images = max_images
        self._active_limits: list[int] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def admit(self, limit: int) -> AsyncIterator[None]:
        """Hold a slot while the body runs, as one of at most `limit` images, this one included."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((limit, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._active_limits.remove(limit)
            else:
                turn.cancel()
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            limit, turn = self._waiting[0]
            if not turn.cancelled():
                if len(self._active_limits) + 1 > min(self.max_images, limit, *self._active_limits):
                    return
                self._active_limits.append(limit)
                turn.set_result(None)
            self._waiting.popleft()
