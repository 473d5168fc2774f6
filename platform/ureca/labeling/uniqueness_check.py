"""Uniqueness check: test blind whether a caption picks its own region, in one of two ways.

By claims, for captions of measured attributes: for each distractor, which of the two regions does the caption fit
better? Uniqueness is the share of answers that are the caption's own region. In addition, the caption should fit no
other region of the image, distractor or not. By choice, for describers with a model: the model sees the caption and all
candidates, numbered in a neutral order, and names one. Uniqueness is 1 or 0. Regions that the caption is mistaken for
are named, so that the describer can rewrite it. Source: the step that URECA (arXiv 2504.05305) section 3 omits: its
rewritten captions are never checked.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ureca.attributes.claims import fit_scores, parse_claims, untrue_claims
from ureca.attributes.measure import RegionAttributes
from ureca.corpus.schema import Distractor

_EQUAL = 1e-9


@dataclass(frozen=True)
class Verdict:
    """Verdict on one caption."""

    uniqueness: float | None
    """Share of answers that name the caption's own region; None if nothing was checked."""
    passed: bool
    """True if the caption passed every check."""
    confused_with: tuple[int, ...]
    """Regions that the caption is, or may be, mistaken for."""
    distractors: tuple[Distractor, ...]
    """The given distractors, with the claim of the caption that rules each out."""


def verify_caption(
    caption: str,
    index: int,
    regions: Sequence[RegionAttributes],
    distractors: Sequence[Distractor],
) -> Verdict:
    """Judge the unique caption of `regions[index]`; `regions` are all regions of the image."""
    claims = parse_claims(caption)
    scores = fit_scores(claims, regions)
    confused = tuple(j for j, score in enumerate(scores) if j != index and score > scores[index] - _EQUAL)
    judged = []
    for distractor in distractors:
        reasons = untrue_claims(claims, distractor.index, regions) or ["order"]
        told_apart_by = None if distractor.index in confused else ", ".join(reasons)
        judged.append(replace(distractor, told_apart_by=told_apart_by))
    num_ruled_out = sum(distractor.told_apart_by is not None for distractor in judged)
    return Verdict(
        uniqueness=num_ruled_out / len(judged) if judged else None,
        passed=not confused,
        confused_with=confused,
        distractors=tuple(judged),
    )


def blind_order(image_id: str, index: int, distractors: Sequence[Distractor]) -> tuple[int, ...]:
    """Return the region and its distractors in a neutral order, the same in every run."""

    def sort_key(candidate: int) -> bytes:
        return hashlib.sha256(f"{image_id}\n{index}\n{candidate}".encode()).digest()

    return tuple(sorted([index, *(distractor.index for distractor in distractors)], key=sort_key))


def judge_choice(
    choice: int | None, index: int, distractors: Sequence[Distractor], told_apart: Mapping[int, str]
) -> Verdict:
    """Judge a caption by the region that was chosen for it.

    `told_apart`: distractor -> the claim of the caption that is not true of it.
    """
    return Verdict(
        uniqueness=float(choice == index),
        passed=choice == index,
        confused_with=() if choice in (None, index) else (choice,),
        distractors=tuple(
            replace(each, told_apart_by=None if each.index == choice else told_apart.get(each.index))
            for each in distractors
        ),
    )
