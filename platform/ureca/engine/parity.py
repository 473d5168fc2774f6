"""Parity check: do the engine's captions equal transformers', token for token?

Both decode greedily in the same precision, but sum in a different order, so they may diverge where two tokens are
almost equally likely. A mismatch is harmless only there: at the first divergence, the engine's token must lie within
`margin` of the best token in transformers' logits. Later tokens are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ureca.engine.engine import CaptionEngine
from ureca.engine.results import Caption
from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner
from ureca.model.exporting.verify import Probe, probe
from ureca.regions.rle import Rle


@dataclass(frozen=True)
class TokenMismatch:
    """First divergence of one request."""

    request: int
    position: int
    """Index of the token in the caption."""
    engine_token: str
    transformers_token: str
    margin: float
    """Distance of the engine's token from the best logit, in transformers' logits."""
    harmless: bool


@dataclass(frozen=True)
class Equality:
    requests: int
    equal: int
    differing: tuple[TokenMismatch, ...]

    @property
    def holds(self) -> bool:
        """True if all captions are equal, except for harmless mismatches."""
        return all(difference.harmless for difference in self.differing)


@torch.no_grad()
def compare_with_transformers(
    captioner: Captioner,
    image: np.ndarray | Image.Image,
    segmentations: Sequence[Rle | None],
    queries: Sequence[str],
    captions: Sequence[Caption],
    *,
    max_tokens: int,
    margin: float = 1e-3,
) -> Equality:
    """Run transformers' `generate` on the engine's requests and compare.

    Args:
        captioner: the same export, loaded in float32.
        captions: the engine's, with temperature 0 and the same `max_tokens`.
        margin: maximum distance of tied logits.
    """
    embeddings, mask = captioner.prompt_embeddings(image, segmentations, queries)
    end = captioner.processor.end_token_id
    base: Any = captioner.base  # its generate() has one type for all call forms
    generated = base.generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokenizer = captioner.processor.tokenizer
    differing = []
    for request, (caption, row) in enumerate(zip(captions, generated.sequences.tolist(), strict=True)):
        expected = row[: row.index(end) + 1] if end in row else row
        found = list(caption.token_ids)
        if found == expected:
            continue
        pairs = zip(found, expected, strict=False)
        # Neither is a prefix of the other: each ends with the end token or at max_tokens.
        position = next(index for index, (ours, theirs) in enumerate(pairs) if ours != theirs)
        logits = generated.logits[position][request]
        distance = float(logits.max() - logits[found[position]])
        differing.append(
            TokenMismatch(
                request=request,
                position=position,
                engine_token=str(tokenizer.decode([found[position]])),
                transformers_token=str(tokenizer.decode([expected[position]])),
                margin=distance,
                harmless=distance <= margin,
            )
        )
    return Equality(requests=len(captions), equal=len(captions) - len(differing), differing=tuple(differing))


_TOKENS = 24


async def verify_engine(export_dir: str | Path) -> str:
    """Start an engine on an export, compare its captions with transformers', and return the result as a sentence.

    Raises:
        CheckpointError: a caption differs where the two tokens were not tied.
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
            f"{export_dir}: in vLLM, region {first.request} of the probe gets {first.engine_token!r} as token "
            f"{first.position}, in transformers {first.transformers_token!r}. Is vLLM's version that of the lock?"
        )
    tied = "" if found.equal == found.requests else ", the others diverge at tied tokens"
    return f"Loaded by vLLM, {found.equal} of {found.requests} captions are identical{tied}."


async def ask_engine(engine: CaptionEngine, captioner: Captioner, asked: Probe) -> Equality:
    """Caption the probe with both and compare token by token. `captioner`: the same export in float32."""
    queries = [captioner.processor.query(style) for style in asked.styles]
    captions = await engine.caption(asked.image, list(asked.regions), queries, max_tokens=_TOKENS)
    return compare_with_transformers(captioner, asked.image, list(asked.regions), queries, captions, max_tokens=_TOKENS)
