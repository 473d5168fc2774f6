"""Scores of one kind of image: all variants, over their seeds, by stratum and by attribute.

A variant may have been trained with several seeds. Its score is then the mean over them, with the interval of that mean
(images are resampled, the seeds are fixed); the scores of each seed and their spread are reported too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ureca.corpus.schema import ImageRow
from ureca.evaluation.bootstrap import Bootstrap, Statistics
from ureca.evaluation.metrics import CAPTION_METRICS

METRICS = (*CAPTION_METRICS, "attribute_accuracy", "uniqueness")
PAIRS = (
    *(("mask_stage2", worse) for worse in ("none", "box", "tuned_none", "tuned_box", "mask_stage1")),
    ("mask_stage3", "mask_stage2"),
    ("mask_stage3", "mask_longer"),
    ("mask_longer", "mask_stage2"),
)
"""(better, worse) pairs whose difference gets an interval."""
STRATUM_METRICS = ("rouge_l", "attribute_accuracy", "uniqueness")

ScoreTable = dict[str, dict[str, dict[str, float]]]
"""Variant -> metric -> {"value", "low", "high"}."""
RunStatistics = Mapping[int, Mapping[str, Statistics]]
"""Seed -> metric -> statistics. Each attribute is stored under "attribute:NAME"."""


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """Scores of one kind of image."""

    num_images: int
    num_regions: int
    scores: ScoreTable
    """Mean over the seeds."""
    seeds: dict[str, dict[int, dict[str, dict[str, float]]]]
    """Variant -> seed -> metric -> {"value", "low", "high"}."""
    spread: dict[str, dict[str, list[float]]]
    """Variant -> metric -> [minimum, maximum] over its seeds; only variants with several seeds."""
    ceiling: dict[str, dict[str, float]]
    """Attribute accuracy and uniqueness of the labels themselves."""
    differences: list[dict[str, Any]]
    """{"metric", "better", "worse", "value", "low", "high"}, paired image by image."""
    attributes: dict[str, dict[str, float]]
    """Variant -> attribute -> accuracy; the labels' under "labels"."""
    attributes_by_size: dict[str, dict[str, dict[str, float]]]
    """Variant -> size of the region -> attribute -> accuracy, the total under "all"; synthetic scenes only."""
    strata: dict[str, dict[str, dict[str, Any]]]
    """Stratum -> value -> {"regions", "scores": variant -> metric -> {"value", "low", "high"}}; the labels' under
    "labels"."""


def scored_group(
    bootstrap: Bootstrap,
    statistics: Mapping[str, RunStatistics],
    labels: Mapping[str, Statistics],
    strata: Sequence[Mapping[str, str]],
) -> ScoredGroup:
    """Compute all scores from the statistics of the same items; `strata` lists the strata of each item."""
    masks = masks_by_stratum(strata)

    def pooled(runs: RunStatistics, metric: str) -> list[Statistics]:
        return [run[metric] for run in runs.values() if metric in run]

    def table(runs: RunStatistics, metrics: Sequence[str] = METRICS) -> dict[str, dict[str, float]]:
        intervals = {name: bootstrap.interval(pooled(runs, name)) for name in metrics}
        return {name: interval.to_dict() for name, interval in intervals.items() if interval}

    def within(runs: RunStatistics, mask: Any) -> dict[int, dict[str, Statistics]]:
        return {seed: {name: restricted(each, mask) for name, each in run.items()} for seed, run in runs.items()}

    seeds = {variant: {seed: table({seed: run}) for seed, run in runs.items()} for variant, runs in statistics.items()}
    differences: list[dict[str, Any]] = []
    for better, worse in PAIRS:
        if better in statistics and worse in statistics:
            for metric in METRICS:
                found = bootstrap.difference(pooled(statistics[better], metric), pooled(statistics[worse], metric))
                if found:
                    differences.append({"metric": metric, "better": better, "worse": worse, **found.to_dict()})
    label_runs = {0: labels}
    everyone = {**statistics, "labels": label_runs}
    return ScoredGroup(
        num_images=bootstrap.num_images,
        num_regions=len(strata),
        scores={variant: table(runs) for variant, runs in statistics.items()},
        seeds=seeds,
        spread={variant: _spread(of) for variant, of in seeds.items() if len(of) > 1},
        ceiling=table(label_runs),
        differences=differences,
        attributes={variant: _attributes(runs) for variant, runs in everyone.items()},
        attributes_by_size={
            variant: {size: _attributes(within(runs, mask), all_too=True) for size, mask in masks["size"].items()}
            for variant, runs in everyone.items()
        }
        if "size" in masks
        else {},
        strata={
            name: {
                value: {
                    "regions": int(mask.sum()),
                    "scores": {
                        variant: table(within(runs, mask), STRATUM_METRICS) for variant, runs in everyone.items()
                    },
                }
                for value, mask in values.items()
            }
            for name, values in masks.items()
        },
    )


def _attributes(runs: RunStatistics, *, all_too: bool = False) -> dict[str, float]:
    """Return accuracy by attribute, averaged over the seeds; attributes without questions are omitted."""
    names = dict.fromkeys(name for run in runs.values() for name in run if name.startswith("attribute:"))
    if all_too:
        names["attribute_accuracy"] = None
    means = {name: sum(run[name].total() for run in runs.values()) / len(runs) for name in names}
    return {
        name.removeprefix("attribute:").replace("attribute_accuracy", "all"): value
        for name, value in means.items()
        if value == value
    }


def _spread(seeds: Mapping[int, Mapping[str, Mapping[str, float]]]) -> dict[str, list[float]]:
    runs = list(seeds.values())
    return {
        metric: [min(values), max(values)]
        for metric in runs[0]
        if (values := [run[metric]["value"] for run in runs if metric in run])
    }


Strata = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Image id -> region id -> {stratum: value}."""

ORDER = {
    "size": ("tiny", "small", "medium", "large", "huge"),
    "depth": ("0", "1", "2 or deeper"),
    "crowding": ("under 12", "12 to 23", "24 or more"),
}


def strata_of(
    row: ImageRow, index: int, truth: Mapping[str, str] | None, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the strata of one region. `truth`: its true attributes; `known`: further strata of a synthetic scene."""
    depth, count = row.regions[index].depth, len(row.regions)
    found = {
        "depth": str(depth) if depth < 2 else "2 or deeper",
        "crowding": "under 12" if count < 12 else "12 to 23" if count < 24 else "24 or more",
    }
    if truth and "size" in truth:
        found = {"size": truth["size"], **found}
    return {**found, **(known or {})}


def masks_by_stratum(strata: Sequence[Mapping[str, str]]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Return stratum -> value -> mask of its items, (I,) bool; known values in their order."""
    names = dict.fromkeys(name for each in strata for name in each)
    masks: dict[str, dict[str, NDArray[np.bool_]]] = {}
    for name in names:
        values = [each.get(name) for each in strata]
        there = sorted({value for value in values if value is not None})
        known = [value for value in ORDER.get(name, ()) if value in there]
        ordered = known + [value for value in there if value not in known]
        masks[name] = {value: np.array([each == value for each in values]) for value in ordered}
    return masks


def restricted(statistics: Statistics, mask: NDArray[np.bool_]) -> Statistics:
    """Restrict the statistics to the items in `mask`."""
    return Statistics(statistics.per_item * mask[:, None], statistics.score, statistics.scale)
