"""Captioning job: resumable, from sources to a region table with the captioner's captions.

    sources --> manifest --pipeline/ray_data.py: an actor per engine, CaptionWorker--> parts --> TABLE, usage report

The runtime is `ureca.pipeline`, as in labeling. Differences: the captioner writes the captions, and the job measures
how busy its engines are.
"""

import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca.captioning.config import CaptionConfig
from ureca.captioning.recipe import CaptionRecipe
from ureca.captioning.worker import CaptionWorker
from ureca.cluster import joins_cluster
from ureca.corpus.table import canonical_digest
from ureca.engine.config import gpus_per_actor
from ureca.pipeline.budget import Budget
from ureca.pipeline.coordinator import JobStats
from ureca.pipeline.job import run_reported_job
from ureca.pipeline.parts import Parts
from ureca.pipeline.ray_data import MakeWorker, RowsPlan, RowWorker, cluster_resources, default_progress_counts
from ureca.pipeline.usage import check_not_all_quarantined, quarantined_by


@dataclass(frozen=True, kw_only=True)
class EngineFigures:
    """Utilization of the engines in a start, or of the requests to an endpoint. None: nothing was captioned."""

    regions_per_second: float | None = None
    """Throughput of all engines, from their readiness to their last image."""
    engine_busy: float | None = None
    """Share of that time with at least one region in generation."""
    regions_at_once: float | None = None
    """Mean regions in generation per engine while busy; at most `engine.max_num_seqs`."""
    cached_share: float | None = None
    """Share of prompt tokens found in the prefix cache: the image is computed once for its regions."""
    start_seconds: float = 0.0
    """Mean start time of an engine."""

    @classmethod
    def of(cls, stats: JobStats) -> "EngineFigures":
        """Compute the figures from the job's totals."""
        counts = {name: stats.counts[f"engine:{name}"] for name in _COUNTED}
        engines = max(len(stats.actors), 1)
        if not counts["busy_milliseconds"]:
            return cls()
        return cls(
            regions_per_second=round(1000 * stats.counts["regions"] * engines / counts["milliseconds"], 2),
            engine_busy=round(counts["busy_milliseconds"] / counts["milliseconds"], 4),
            regions_at_once=round(counts["region_milliseconds"] / counts["busy_milliseconds"], 2),
            cached_share=round(counts["cached_tokens"] / max(counts["prompt_tokens"], 1), 4),
            start_seconds=round(counts["start_milliseconds"] / 1000 / engines, 1),
        )

    def __str__(self) -> str:
        if self.engine_busy is None:
            return "nothing captioned"
        return (
            f"{self.regions_per_second:,.3g} regions/s; busy {self.engine_busy:.1%} of the time after a start of "
            f"{self.start_seconds:.0f} s, with {self.regions_at_once:.3g} regions in generation; "
            f"{self.cached_share:.1%} of prompt tokens from the prefix cache"
        )


_COUNTED = (
    "milliseconds",
    "busy_milliseconds",
    "region_milliseconds",
    "start_milliseconds",
    "prompt_tokens",
    "cached_tokens",
)
"""Counts of `CaptionWorker.counts`, as parts of `engine`."""


@dataclass(frozen=True, kw_only=True)
class CaptionSummary:
    """Result of a captioning job: images = captioned + the sum of quarantined."""

    table: str
    """Path of the region table."""
    model: str
    """Captioner, as in the table's provenance."""
    images: int
    captioned: int
    quarantined: dict[str, int]
    """Error class -> quarantined images."""
    regions: int
    captions: int
    flagged: int
    """Regions with any flag."""
    caption_seconds: float
    """Duration of this start, including the start of Ray and of the engines."""
    engine: EngineFigures
    """Engine utilization of this start."""
    digest: str
    """Digest of the table's content; equal for equal corpus, model and configuration."""


def caption_corpus(
    config: CaptionConfig,
    directory: str | os.PathLike[str],
    make_worker: Callable[[CaptionRecipe, Budget | None, float], RowWorker] = CaptionWorker,
) -> CaptionSummary:
    """Caption all images of the sources into one region table; `directory` is the run's local folder.

    `make_worker` creates the worker of each actor.

    Raises:
        InputError: a source has no images, or no image could be captioned.
        ConfigError: an earlier start used other settings, or the endpoint does not answer.
        CheckpointError: the model's folder is not an export.
        JobStopped: engine, endpoint or storage are gone; finished images are kept.
    """
    started = time.monotonic()
    parts = Parts(config.table or str(Path(directory).resolve() / "regions.parquet"))
    recipe = CaptionRecipe.read(config)
    print(
        f"caption  model {recipe.model}{f' at {config.endpoint.url}' if config.endpoint.url else ''}", file=sys.stderr
    )

    def prepare(num_images: int) -> tuple[MakeWorker, RowsPlan]:
        return functools.partial(make_worker, recipe), rows_plan(config, num_images, cluster_resources())

    settings = recipe.settings()
    stats, table, seconds = run_reported_job(
        config, directory, parts, settings, label="caption", prepare=prepare, started=started
    )
    figures = EngineFigures.of(stats)
    print(f"{'endpoint' if config.endpoint.url else 'engine':<13}{figures}", file=sys.stderr)
    stats.raise_unless_complete()
    assert table is not None
    check_not_all_quarantined(parts.table, table, "captioned")
    return _summary(recipe, parts.table, table, figures, seconds)


def rows_plan(config: CaptionConfig, num_images: int, resources: Mapping[str, float]) -> RowsPlan:
    """Return how the corpus is distributed over a cluster with these resources.

    Raises:
        ConfigError: the cluster has too few GPUs for one engine.
    """
    gpus = 0.0
    if not config.endpoint.url:
        may_grow = bool(config.model) and joins_cluster()
        gpus = gpus_per_actor(config.engine, resources.get("GPU", 0), may_grow=may_grow)
    return RowsPlan(
        label="caption",
        num_images=num_images,
        images_per_block=config.images_per_block,
        images_in_flight=config.images_in_flight,
        actors=config.actors or (0 if gpus else 1),
        gpus_per_actor=gpus,
        crash_attempts=config.crash_attempts,
        progress_counts=_progress_counts,
    )


def _progress_counts(stats: JobStats) -> dict[str, Any]:
    figures = EngineFigures.of(stats)
    if figures.engine_busy is None:
        return default_progress_counts(stats)
    engine = {"regions/s": figures.regions_per_second, "engine_busy": f"{figures.engine_busy:.0%}"}
    return engine | default_progress_counts(stats)


def _summary(
    recipe: CaptionRecipe, table: str, counts: Counter[str], figures: EngineFigures, seconds: float
) -> CaptionSummary:
    return CaptionSummary(
        table=table,
        model=recipe.model,
        images=counts["images"],
        captioned=counts["images"] - counts["quarantined"],
        quarantined=quarantined_by(counts),
        regions=counts["regions"],
        captions=counts["captions"],
        flagged=counts["flagged"],
        caption_seconds=round(seconds, 1),
        engine=figures,
        digest=canonical_digest(table),
    )
