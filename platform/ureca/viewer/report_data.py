"""What the report page shows, as plain values, and the names that people read in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ureca.regions.rle import Rle
from ureca.viewer.plots import Curve

Scores = Mapping[str, Mapping[str, float]]
"""Metric -> {"value", "low", "high"}."""
Kind = Literal["photo", "drawn"]


@dataclass(frozen=True, kw_only=True)
class ReportRegion:
    """A region with its label and what each variant of the captioner said."""

    region_id: str
    parent: int
    """Index in the image's list of regions, -1 = top level; parents stand before their children."""
    segmentation: Rle
    short_caption: str | None = None
    long_caption: str | None = None
    """Before the uniqueness pass."""
    caption: str | None = None
    """After it."""
    captions: Mapping[str, str] | None = None
    """Variant -> its caption."""
    picks_own: Mapping[str, bool] | None = None
    """Variant -> whether that caption fits this region better than any other of the image."""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportImage:
    """A held-out image; `image` is uint8 (H, W, 3), RGB."""

    image_id: str
    kind: Kind
    image: NDArray[np.uint8]
    regions: tuple[ReportRegion, ...]
    title: str = ""
    """The image id unless given."""
    credit: str = ""
    """Author and license, where the license asks for them."""


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """`better` minus `worse` in one metric, with its interval."""

    metric: str
    better: str
    worse: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What the page shows."""

    title: str
    intro: str = ""
    scores: Mapping[str, Scores]
    """Variant -> metric -> {"value", "low", "high"}."""
    ceiling: Scores | None = None
    """What the labels themselves reach, where that can be measured."""
    accuracy: Mapping[str, Mapping[str, float]] | None = None
    """Size of a region -> attribute -> attribute accuracy of the captioner, the whole under "all"."""
    strata: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    """Stratum -> value -> {"regions", metric: value} of the captioner."""
    differences: Sequence[ScoreDifference] = ()
    curves: Sequence[Curve] = ()
    facts: Sequence[tuple[str, str]] = ()
    """(name, value) of figures to show on top."""
    images: Sequence[ReportImage] = ()
    notes: Sequence[str] = ()
    """Known limits of the captioner, one sentence or two each."""
