"""Streams that cross a process: what has come meanwhile goes together."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def batch_stream(stream: AsyncGenerator[T]) -> AsyncGenerator[list[T]]:
    """The stream's items, all at once that have come since the last were taken.

    Each item that goes from process to process alone costs Ray more than an engine takes for the piece of text in it:
    with many regions at once, the way would be slower than the engine.
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
                await taking  # raises what the stream raised
                return
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
