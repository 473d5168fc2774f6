"""Content of the report page as plain values, with display names."""

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
    """A region with its label and the caption of each variant."""

    region_id: str
    parent: int
    """Index in the image's list of regions, -1 = top level; parents precede their children."""
    segmentation: Rle
    short_caption: str | None = None
    long_caption: str | None = None
    """Caption before the uniqueness pass."""
    caption: str | None = None
    """Caption after it."""
    captions: Mapping[str, str] | None = None
    """Variant -> its caption."""
    picks_own: Mapping[str, bool] | None = None
    """Variant -> True if that caption fits this region better than any other of the image."""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportImage:
    """A held-out image; `image` is uint8 (H, W, 3), RGB."""

    image_id: str
    kind: Kind
    image: NDArray[np.uint8]
    regions: tuple[ReportRegion, ...]
    title: str = ""
    """Default: the image id."""
    credit: str = ""
    """Author and license, if the license requires them."""


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
    """Content of the page."""

    title: str
    intro: str = ""
    scores: Mapping[str, Scores]
    """Variant -> metric -> {"value", "low", "high"}."""
    ceiling: Scores | None = None
    """Scores of the labels themselves, if they can be measured."""
    accuracy: Mapping[str, Mapping[str, float]] | None = None
    """Size of a region -> attribute -> attribute accuracy of the captioner, the total under "all"."""
    strata: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    """Stratum -> value -> {"regions", metric: value} of the captioner."""
    differences: Sequence[ScoreDifference] = ()
    curves: Sequence[Curve] = ()
    facts: Sequence[tuple[str, str]] = ()
    """(name, value) of figures shown at the top."""
    images: Sequence[ReportImage] = ()
    notes: Sequence[str] = ()
    """Known limitations of the captioner, one or two sentences each."""
