"""Labeling job: resumable, from sources to a region table with captions.

    sources --> manifest --pipeline/ray_data.py: an actor per CPU, LabelWorker--> parts --> TABLE, usage report

Each image, labeled or quarantined, becomes one row that is written once. When all rows exist they are merged into one
table, sorted by image id, so two runs give the same table regardless of the order in which actors finish. Everything
but the table is kept in the folder TABLE.parts: the same command again finds all rows done, or labels only added
images.
"""

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca.cluster import joins_cluster
from ureca.config import config_to_dict
from ureca.corpus.schema import SCHEMA_VERSION
from ureca.corpus.table import canonical_digest
from ureca.engine.config import gpus_per_actor
from ureca.labeling.config import LabelConfig
from ureca.labeling.worker import DescriberRecipe, LabelWorker
from ureca.pipeline.budget import Budget
from ureca.pipeline.coordinator import JobStats
from ureca.pipeline.flags import NOT_UNIQUE
from ureca.pipeline.job import run_reported_job
from ureca.pipeline.parts import Parts
from ureca.pipeline.ray_data import MakeWorker, RowsPlan, RowWorker, cluster_resources
from ureca.pipeline.usage import check_not_all_quarantined, quarantined_by


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Result of a labeling job: images = labeled + the sum of quarantined."""

    table: str
    """Path of the region table."""
    images: int
    labeled: int
    quarantined: dict[str, int]
    """Error class -> quarantined images."""
    regions: int
    flagged: int
    """Regions with any flag."""
    unique_share: float
    """Share of regions whose caption fits no other region of the image."""
    label_seconds: float
    """Duration of this start, including Ray's start."""
    regions_per_second: float | None
    """Regions labeled in this start over `label_seconds`; None if all were labeled before."""
    digest: str
    """Digest of the table's content; equal for equal corpus and configuration."""


def table_of(config: LabelConfig, directory: str | os.PathLike[str]) -> str:
    """Return the path of the job's region table."""
    return config.table or str(Path(directory).resolve() / "regions.parquet")


def label_corpus(
    config: LabelConfig,
    directory: str | os.PathLike[str],
    make_worker: Callable[[DescriberRecipe, Budget | None, float], RowWorker] = LabelWorker,
) -> LabelSummary:
    """Label all images of the sources into one region table; `directory` is the run's local folder.

    `make_worker` creates the worker of each actor.

    Raises:
        InputError: a source has no images, or no image could be labeled.
        ConfigError: an earlier start used other settings, or the describer can't answer.
        JobStopped: the budget is spent, or endpoint or storage are gone; finished images are kept.
    """
    started = time.monotonic()
    parts = Parts(table_of(config, directory))
    recipe = DescriberRecipe.read(config)

    def prepare(num_images: int) -> tuple[MakeWorker, RowsPlan]:
        recipe.check()
        return functools.partial(make_worker, recipe), rows_plan(config, num_images, cluster_resources())

    settings = label_settings(config, recipe)
    stats, table, seconds = run_reported_job(
        config, directory, parts, settings, label="label", prepare=prepare, started=started
    )
    stats.raise_unless_complete()
    assert table is not None
    return _summarize(parts.table, table, stats, seconds)


def rows_plan(config: LabelConfig, num_images: int, resources: Mapping[str, float]) -> RowsPlan:
    """Return how the corpus is distributed over a cluster with these resources.

    Raises:
        ConfigError: the cluster has too few GPUs for one actor.
    """
    return RowsPlan(
        label="label",
        num_images=num_images,
        images_per_block=config.images_per_block,
        images_in_flight=config.images_in_flight,
        actors=config.actors,
        gpus_per_actor=_gpus_per_actor(config, resources.get("GPU", 0)),
        crash_attempts=config.crash_attempts,
        max_tokens=config.chat.max_total_tokens if config.describer == "chat" else 0,
    )


def _gpus_per_actor(config: LabelConfig, cluster_gpus: float) -> float:
    if config.describer != "vllm":
        return config.gpus_per_actor
    return gpus_per_actor(config.vllm, cluster_gpus, may_grow=config.vllm.model != "nano" and joins_cluster())


def label_settings(config: LabelConfig, recipe: DescriberRecipe) -> dict[str, Any]:
    """Return the settings that decide the labels, without location, speed and number of processes."""
    return {
        "sources": list(config.sources),
        "labeling": config_to_dict(config.settings()),
        "schema_version": SCHEMA_VERSION,
        **recipe.settings(),
    }


def _summarize(table: str, counts: Counter[str], stats: JobStats, seconds: float) -> LabelSummary:
    check_not_all_quarantined(table, counts, "labeled")
    regions = stats.counts["regions"]
    return LabelSummary(
        table=table,
        images=counts["images"],
        labeled=counts["images"] - counts["quarantined"],
        quarantined=quarantined_by(counts),
        regions=counts["regions"],
        flagged=counts["flagged"],
        unique_share=round(1 - counts[f"flagged:{NOT_UNIQUE}"] / max(counts["regions"], 1), 6),
        label_seconds=round(seconds, 1),
        regions_per_second=round(regions / seconds, 2) if regions else None,
        digest=canonical_digest(table),
    )
