"""What the engine returns; imports neither torch nor vLLM, so that callers elsewhere can read it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

__all__ = ["Caption", "whole_captions"]


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


async def whole_captions(stream: AsyncGenerator[tuple[int, str | Caption]]) -> list[Caption]:
    """Of what `CaptionEngine.stream` tells, only the whole captions, in the order of their regions."""
    captions: dict[int, Caption] = {}
    async with aclosing(stream):
        async for index, event in stream:
            if isinstance(event, Caption):
                captions[index] = event
    return [captions[index] for index in sorted(captions)]
