"""Does a caption pick its own region? Asked blind, in one of two ways.

By claims, where captions say what was measured: one question per distractor, "which of these two does the
caption fit better?" The share answered with the caption's own region is its uniqueness. Beyond that a caption
should fit no other region of the image at all, distractor or not.
By choice, where a describer looks: it is shown the caption and all candidates, numbered in an order that tells
nothing, and names one; uniqueness is 1 or 0.
Whatever the caption is mistaken for is named, so that the describer can be asked again.
Source: the step that URECA (arXiv 2504.05305) section 3 leaves out: its rewritten captions are never checked.
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
    """The outcome of verifying one caption."""

    uniqueness: float | None
    """Share of the questions answered with the caption's own region; None if nothing was asked."""
    passed: bool
    """Whether nothing speaks against the caption."""
    confused_with: tuple[int, ...]
    """The regions of the image that it is, or may be, mistaken for."""
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
        passed=not confused,
        confused_with=confused,
        distractors=tuple(judged),
    )


def blind_order(image_id: str, index: int, distractors: Sequence[Distractor]) -> tuple[int, ...]:
    """The region and its distractors in an order that tells nothing of which it is, the same in every run."""

    def place(candidate: int) -> bytes:
        return hashlib.sha256(f"{image_id}\n{index}\n{candidate}".encode()).digest()

    return tuple(sorted([index, *(distractor.index for distractor in distractors)], key=place))


def judge_choice(
    choice: int | None, index: int, distractors: Sequence[Distractor], told_apart: Mapping[int, str]
) -> Verdict:
    """Judge a caption by the region that was chosen for it.

    `told_apart`: distractor -> what the writer of the caption says that is not true of it.
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
