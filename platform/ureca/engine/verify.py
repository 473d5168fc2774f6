"""Does vLLM caption an export as transformers does? `python jobs/export.py --verify=vllm` asks this of every export."""

from __future__ import annotations

from pathlib import Path

from ureca.engine.engine import CaptionEngine
from ureca.engine.equality import Equality, compare_with_transformers
from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner
from ureca.model.verify import Probe, probe

__all__ = ["ask_engine", "verify_engine"]

_TOKENS = 24


async def verify_engine(export_dir: str | Path) -> str:
    """Start an engine on an export, hold its captions against transformers' own, and say what came of it.

    Raises:
        CheckpointError: a caption differs where the two tokens were not all but equally likely.
    """
    engine = CaptionEngine(export_dir, dtype="float32")
    await engine.start()
    try:
        found = await ask_engine(engine, Captioner.from_pretrained(export_dir), probe())
    finally:
        engine.close()
    if not found.holds:
        first = next(each for each in found.differing if not each.harmless)
        raise CheckpointError(
            f"{export_dir}: in vLLM region {first.request} of the probe gets {first.engine_token!r} as token "
            f"{first.position}, transformers says {first.transformers_token!r}. Is vLLM the version of the lock?"
        )
    tied = "" if found.equal == found.requests else ", the others part where two tokens were equally likely"
    return f"Loaded by vLLM, {found.equal} of {found.requests} captions are the same{tied}."


async def ask_engine(engine: CaptionEngine, captioner: Captioner, asked: Probe) -> Equality:
    """The probe's captions from both sides, compared token by token. `captioner`: the same export, in 32 bits."""
    queries = [captioner.processor.query(style) for style in asked.styles]
    captions = await engine.caption(asked.image, list(asked.regions), queries, max_tokens=_TOKENS)
    return compare_with_transformers(captioner, asked.image, list(asked.regions), queries, captions, max_tokens=_TOKENS)
