"""Scores beyond n-grams: attribute accuracy and uniqueness.

    attribute accuracy   of the attributes that the label states and the truth knows (color, texture, shape,
                         size, place), the fraction that the caption states correctly; synthetic scenes only
    uniqueness           fraction of captions that fit their region better than every other region of the image

Both parse captions with `ureca.attributes.claims`, a fixed vocabulary without a model. They are fast and repeatable,
and ignore whatever a caption says beyond the vocabulary. Candidates are judged by their true attributes if known
(synthetic scenes), else by measured ones. The labels' own scores are reported too: they are the ceiling of a captioner
trained on them.

Source: self-retrieval. The paper scores captions only with n-gram metrics and names as a limitation that these can't
measure uniqueness, URECA (arXiv 2504.05305) appendix F.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ureca.attributes.claims import ATTRIBUTES, attribute_hits, picks_own_region
from ureca.attributes.measure import RegionAttributes, measure_tree
from ureca.corpus.schema import ImageRow
from ureca.evaluation.bootstrap import Statistics, share_statistics

Truth = Mapping[str, Mapping[str, str]]
"""Region id -> its true attributes."""


@dataclass(frozen=True)
class Candidates:
    """Regions of an image among which a caption retrieves."""

    attributes: tuple[RegionAttributes, ...]
    truth: tuple[Mapping[str, str] | None, ...]
    """True attributes of each region, None if unknown."""


@dataclass(frozen=True)
class ScoredCaption:
    """A caption with its region and the label to compare with."""

    caption: str
    reference: str
    index: int
    """Index of the region among its image's candidates."""
    candidates: Candidates


def region_candidates(image: np.ndarray, row: ImageRow, truth: Truth | None = None) -> Candidates:
    """Measure an image's regions (uint8 (H, W, 3), RGB); `truth` overrides the table's true attributes."""
    measured = measure_tree(
        image, [region.segmentation for region in row.regions], [region.parent for region in row.regions]
    )
    known = [(truth or {}).get(region.region_id, region.attributes) or None for region in row.regions]
    attributes = (
        region if true is None else region.with_truth(dict(true)) for region, true in zip(measured, known, strict=True)
    )
    return Candidates(tuple(attributes), tuple(known))


def picks_own(item: ScoredCaption) -> bool:
    """Return True if the caption fits its region better than every other region of the image."""
    return picks_own_region(item.caption, item.index, item.candidates.attributes)


def attribute_statistics(items: Sequence[ScoredCaption]) -> dict[str, Statistics]:
    """Return statistics of attribute accuracy: per attribute by name, and of all together under "all"."""
    right = np.zeros((len(items), len(ATTRIBUTES)))
    asked = np.zeros_like(right)
    for row, item in enumerate(items):
        truth = item.candidates.truth[item.index]
        if truth is None:
            continue
        for name, hit in attribute_hits(item.caption, item.reference, truth).items():
            right[row, ATTRIBUTES.index(name)] = hit
            asked[row, ATTRIBUTES.index(name)] = 1
    by_name = {name: share_statistics(right[:, column], asked[:, column]) for column, name in enumerate(ATTRIBUTES)}
    return {"all": share_statistics(right.sum(axis=1), asked.sum(axis=1)), **by_name}
