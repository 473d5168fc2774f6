"""What n-gram metrics can't see: is a caption true, and does it fit its own region alone?

    attribute accuracy   of the attributes that the label states and the truth knows (color, texture, shape,
                         size, place), the share that the caption states too, and rightly; drawn scenes only
    uniqueness           share of captions that fit their own region better than every other of the image

Both read captions with `ureca.attributes.claims`, a fixed vocabulary and no model, so they are cheap and
repeatable, and blind to whatever a caption says beyond it. Candidates are judged by their true attributes
where these are known (drawn scenes), else by measured ones. The labels pass through the same two scores:
theirs is the ceiling of a captioner that learns from them.

Source: self-retrieval. The paper measures captions with n-gram metrics alone and names as a limit that these
can't see uniqueness, URECA (arXiv 2504.05305) appendix F.
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
    """The regions of an image that a caption chooses among."""

    attributes: tuple[RegionAttributes, ...]
    truth: tuple[Mapping[str, str] | None, ...]
    """True attributes of each region, None where nobody knows them."""


@dataclass(frozen=True)
class ScoredCaption:
    """A caption, the region it is about, and the label it is compared with."""

    caption: str
    reference: str
    index: int
    """Of the region among its image's candidates."""
    candidates: Candidates


def region_candidates(image: np.ndarray, row: ImageRow, truth: Truth | None = None) -> Candidates:
    """Measure an image's regions (uint8 (H, W, 3), RGB); `truth` goes before the table's true attributes."""
    measured = measure_tree(
        image, [region.segmentation for region in row.regions], [region.parent for region in row.regions]
    )
    known = [(truth or {}).get(region.region_id, region.attributes) or None for region in row.regions]
    attributes = (
        region if true is None else region.with_truth(dict(true)) for region, true in zip(measured, known, strict=True)
    )
    return Candidates(tuple(attributes), tuple(known))


def picks_own(item: ScoredCaption) -> bool:
    """Whether the caption fits its region better than every other region of the image."""
    return picks_own_region(item.caption, item.index, item.candidates.attributes)


def attribute_statistics(items: Sequence[ScoredCaption]) -> dict[str, Statistics]:
    """Statistics of attribute accuracy: of each attribute by its name, and of all together under "all"."""
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
