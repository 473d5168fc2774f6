"""Batches of stream items between processes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing

import pytest

from ureca.serving.api.stream_batching import batch_stream


class Scripted:
    """A stream of numbers in turns; the numbers of a turn are available at once."""

    def __init__(self, *turns: list[int], error: Exception | None = None) -> None:
        self._turns, self._error = turns, error
        self.closed = False

    async def stream(self) -> AsyncGenerator[int]:
        try:
            for turn in self._turns:
                await asyncio.sleep(0.02)
                for number in turn:
                    yield number
            if self._error:
                raise self._error
        finally:
            self.closed = True


def run(work: Callable[[], Coroutine]) -> None:
    asyncio.run(asyncio.wait_for(work(), 10))


def test_what_is_there_at_once_goes_together_and_in_order():
    async def take() -> None:
        received = Scripted([1, 2, 3], [], [4], [5, 6])
        assert [numbers async for numbers in batch_stream(received.stream())] == [[1, 2, 3], [4], [5, 6]]
        assert received.closed

    run(take)


def test_who_is_slow_gets_all_that_came_meanwhile():
    async def take() -> None:
        received = Scripted([1], [2], [3], [4])
        stream = batch_stream(received.stream())
        assert await anext(stream) == [1]
        while not received.closed:
            await asyncio.sleep(0.01)
        assert [numbers async for numbers in stream] == [[2, 3, 4]]

    run(take)


def test_an_error_comes_after_what_was_told_before_it():
    async def take() -> None:
        stream = batch_stream(Scripted([1, 2], error=ZeroDivisionError()).stream())
        assert await anext(stream) == [1, 2]
        with pytest.raises(ZeroDivisionError):
            await anext(stream)

    run(take)


@pytest.mark.parametrize("after", [0, 1])
def test_who_leaves_closes_the_stream(after):
    async def take() -> None:
        received = Scripted([1], *[[2]] * 1000)
        async with aclosing(batch_stream(received.stream())) as stream:
            for _ in range(after):
                await anext(stream)
            waiting = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert received.closed

    run(take)


def test_a_stream_of_nothing():
    async def take() -> None:
        assert [numbers async for numbers in batch_stream(Scripted().stream())] == []

    run(take)
