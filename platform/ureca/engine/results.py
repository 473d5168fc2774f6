"""What the engine returns; imports neither torch nor vLLM, so that callers elsewhere can read it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """What became of one region."""

    text: str
    finish_reason: str
    """`stop` (the model ended it) or `length` (cut at `max_tokens`)."""
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    """Of `prompt_tokens`, those found in the KV cache: whole blocks, 128 tokens on a CPU, 16 on a GPU."""
    completion_tokens: int
    logprobs: tuple[tuple[str, float], ...] | None = None
    """Each token's text and log-probability, where they were asked for."""


@dataclass(frozen=True)
class RegionFault:
    """Why a region gets no caption: what is wrong with its question alone."""

    message: str


Event = str | Caption | RegionFault
"""What is told of a region: the next piece of its caption, and last its caption, or why it has none."""


async def collect_captions(stream: AsyncGenerator[tuple[int, Event]]) -> list[Caption | RegionFault]:
    """Of what `CaptionEngine.stream` tells, only the last of each region, in the order of the regions."""
    last: dict[int, Caption | RegionFault] = {}
    async with aclosing(stream):
        async for index, event in stream:
            if not isinstance(event, str):
                last[index] = event
    return [last[index] for index in sorted(last)]
