"""Results of the engine; imports neither torch nor vLLM, so that any caller can read them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """Caption of one region."""

    text: str
    finish_reason: str
    """`stop` (the model ended it) or `length` (truncated at `max_tokens`)."""
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    """Tokens of `prompt_tokens` found in the KV cache: complete blocks, 128 tokens on CPUs, 16 on GPUs."""
    completion_tokens: int
    logprobs: tuple[tuple[str, float], ...] | None = None
    """Text and log-probability of each token, if requested."""


@dataclass(frozen=True)
class RegionFault:
    """Reason why a region has no caption: its query is at fault."""

    message: str


Event = str | Caption | RegionFault
"""Event of a region: the next piece of its caption, and finally its caption or its fault."""


async def collect_captions(stream: AsyncGenerator[tuple[int, Event]]) -> list[Caption | RegionFault]:
    """Collect the final event of each region from `CaptionEngine.stream`, in region order."""
    last: dict[int, Caption | RegionFault] = {}
    async with aclosing(stream):
        async for index, event in stream:
            if not isinstance(event, str):
                last[index] = event
    return [last[index] for index in sorted(last)]
