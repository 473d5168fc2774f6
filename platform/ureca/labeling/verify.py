"""Does a caption pick its own region? Asked blind: from the text and what was measured of the regions.

One question per distractor: "which of these two does the caption fit better?" The share answered with the
caption's own region is its uniqueness. Beyond that a caption should fit no other region of the image at all,
distractor or not: whatever fits it as well is named, so that the describer can be asked again.
Source: the step that URECA (arXiv 2504.05305) section 3 leaves out: its rewritten captions are never checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ureca.attributes.claims import fit_scores, parse_claims, untrue_claims
from ureca.attributes.measure import RegionAttributes
from ureca.corpus.schema import Distractor

_EQUAL = 1e-9


@dataclass(frozen=True)
class Verdict:
    """The outcome of verifying one caption."""

    uniqueness: float | None
    """Share of the questions answered with the caption's own region; None without distractors."""
    confused_with: tuple[int, ...]
    """All regions of the image that the caption fits at least as well as its own."""
    distractors: tuple[Distractor, ...]
    """As given, with what the caption says to rule each out."""


def verify_caption(
    caption: str,
    index: int,
    regions: Sequence[RegionAttributes],
    distractors: Sequence[Distractor],
) -> Verdict:
    """Judge the unique caption of `regions[index]`; `regions` are all of the image."""
    claims = parse_claims(caption)
    scores = fit_scores(claims, regions)
    confused = tuple(j for j, score in enumerate(scores) if j != index and score > scores[index] - _EQUAL)
    judged = []
    for distractor in distractors:
        reasons = untrue_claims(claims, distractor.index, regions) or ["order"]
        told_apart_by = None if distractor.index in confused else ", ".join(reasons)
        judged.append(replace(distractor, told_apart_by=told_apart_by))
    picked = sum(distractor.told_apart_by is not None for distractor in judged)
    return Verdict(
        uniqueness=picked / len(judged) if judged else None,
        confused_with=confused,
        distractors=tuple(judged),
    )
