"""What the engine returns; imports neither torch nor vLLM, so that callers elsewhere can read it."""

from dataclasses import dataclass

__all__ = ["Caption"]


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
