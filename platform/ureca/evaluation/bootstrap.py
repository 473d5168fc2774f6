"""Confidence intervals by resampling whole images.

Regions of one image are not independent, so the bootstrap draws images with replacement, never regions. A score is
computed from sufficient statistics, sums over items, so that a resample is a weighted sum and 1,000 resamples are one
matrix product:

    per_item       (items, K)      e.g. K=2 for a mean: (value, 1)
    sums per image (images, K)
    counts         (resamples, images)   how often each image was drawn
    score(counts @ sums)           (resamples,)

Per metric: BLEU and METEOR are recomputed from their summed counts in every resample, like their corpus values.
ROUGE-L, attribute accuracy and uniqueness are means. CIDEr is the mean of its items' values, whose word weights (IDF)
come from the whole evaluated set and are fixed while resampling. A paired difference uses the same resamples on both
sides. Runs of one variant (seeds) are averaged within every resample: the interval covers the choice of images, not the
choice of seeds.

Shapes: I items, K statistics, M images, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_RESAMPLES = 1_000
COVERAGE = 0.95


@dataclass(frozen=True)
class Interval:
    """A score with its 95% percentile interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Statistics:
    """Statistics of each item, and the function from their sum to the score.

    An item of zeros is excluded: used for regions that a metric does not apply to.
    """

    per_item: Floats
    """(I, K)"""
    score: Callable[[Floats], Floats]
    """(..., K) sums -> (...) scores; NaN if nothing was summed."""
    scale: float = 1.0
    """Factor on scores whose range is not 0..1."""

    def total(self) -> float:
        """The score of all items together."""
        return float(self.score(self.per_item.sum(axis=0))) * self.scale


def _mean(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def mean_statistics(values: Sequence[float] | Floats, *, scale: float = 1.0) -> Statistics:
    """Return the statistics of a mean. NaN: the metric does not apply to this item."""
    array = np.asarray(values, dtype=np.float64)
    applies = ~np.isnan(array)
    return Statistics(np.stack([np.where(applies, array, 0.0), applies], axis=1), _mean, scale)


def share_statistics(parts: Sequence[float] | Floats, wholes: Sequence[float] | Floats) -> Statistics:
    """Return the statistics of summed parts over summed wholes, e.g. correct answers over questions."""
    columns = [np.asarray(each, dtype=np.float64) for each in (parts, wholes)]
    return Statistics(np.stack(columns, axis=1), _mean)


class Bootstrap:
    """One set of resamples of the images, shared by all scores so that differences are paired.

    `image_ids` gives the image of every item. The same ids and seed give the same intervals.
    """

    def __init__(self, image_ids: Sequence[Hashable], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> None:
        index_of = {image_id: index for index, image_id in enumerate(dict.fromkeys(image_ids))}
        self._image_of_item = np.array([index_of[image_id] for image_id in image_ids], dtype=np.intp)
        self.num_images = len(index_of)
        if self.num_images == 0:
            raise ValueError("no images to resample")
        generator = np.random.default_rng(seed)
        share = np.full(self.num_images, 1.0 / self.num_images)
        self._counts = generator.multinomial(self.num_images, share, size=num_resamples).astype(np.float64)

    def resampled(self, statistics: Statistics) -> Floats:
        """Return the score in every resample: (R,), NaN if a resample holds no applicable item."""
        sums = np.zeros((self.num_images, statistics.per_item.shape[1]))
        np.add.at(sums, self._image_of_item, statistics.per_item)
        return statistics.score(self._counts @ sums) * statistics.scale

    def interval(self, runs: Sequence[Statistics]) -> Interval | None:
        """Return the mean score of the runs (one, or one per seed) with its interval; None if no item applies."""
        if not runs:
            return None
        value, resampled = self._mean(runs)
        return None if np.isnan(value) else _percentiles(value, resampled)

    def difference(self, better: Sequence[Statistics], worse: Sequence[Statistics]) -> Interval | None:
        """Return `better` minus `worse`, means of their runs over the same items, resampled together; None as above."""
        if not (better and worse):
            return None
        (value, resampled), (other, other_resampled) = self._mean(better), self._mean(worse)
        return None if np.isnan(value - other) else _percentiles(value - other, resampled - other_resampled)

    def _mean(self, runs: Sequence[Statistics]) -> tuple[float, Floats]:
        totals = [run.total() for run in runs]
        return float(np.mean(totals)), np.mean([self.resampled(run) for run in runs], axis=0)


def _percentiles(value: float, resampled: Floats) -> Interval:
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
