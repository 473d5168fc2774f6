"""How many images are labeled in one process at once, and in whose company.

An image that may kill its process must not take many others with it again: while it is inside, the process holds
no more than its own limit. Images enter in the order in which they came, so one that waits to be alone is not
overtaken for ever.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class AdmissionLimiter:
    """The images inside one process."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._inside: list[int] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def join(self, limit: int) -> AsyncIterator[None]:
        """Be one of at most `limit` inside, oneself included, for as long as the body runs."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((limit, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._inside.remove(limit)
            else:
                turn.cancel()
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            limit, turn = self._waiting[0]
            if not turn.cancelled():
                if len(self._inside) + 1 > min(self.most, limit, *self._inside):
                    return
                self._inside.append(limit)
                turn.set_result(None)
            self._waiting.popleft()
