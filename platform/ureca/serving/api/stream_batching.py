"""Batch stream items that cross a process boundary."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def batch_stream(stream: AsyncGenerator[T]) -> AsyncGenerator[list[T]]:
    """Yield the stream's items in batches: all that arrived since the last batch.

    Sending each item separately costs Ray more than the engine needs for its piece of text: with many regions,
    transport would be slower than the engine.
    """
    waiting: list[T] = []
    changed = asyncio.Event()

    async def take() -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    waiting.append(item)
                    changed.set()
        finally:
            changed.set()

    taking = asyncio.create_task(take())
    try:
        while True:
            await changed.wait()
            changed.clear()
            items, waiting[:] = waiting[:], []
            if items:
                yield items
            if taking.done() and not waiting:
                await taking  # raises the stream's error
                return
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
