"""Resumable job from sources to a complete region table, shared by labeling, captioning and mask trees.

sources --> manifest --ray_data.py: actors--> parts --> TABLE
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ureca.corpus.sources.parse import write_manifest
from ureca.corpus.table import iter_images
from ureca.pipeline.config import CaptionJobConfig
from ureca.pipeline.coordinator import JobStats
from ureca.pipeline.parts import Parts
from ureca.pipeline.ray_data import MakeWorker, RowsPlan, run_rows
from ureca.pipeline.usage import total_counts, write_usage


def run_table_job(
    parts: Parts,
    sources: Sequence[str],
    settings: dict[str, Any],
    *,
    label: str,
    overwrite: bool,
    prepare: Callable[[int], tuple[MakeWorker, RowsPlan]],
) -> tuple[JobStats, RowsPlan | None]:
    """Process every image that the parts lack, and write the table once all rows exist.

    Args:
        parts: the table and the folder next to it.
        sources: images and masks.
        settings: settings that decide the rows; an earlier start with other settings is refused.
        label: prefix of printed lines.
        overwrite: delete the results of an earlier start with other settings.
        prepare: called with the number of images if there is work to do; returns the worker factory and its plan. May
            raise what makes the job impossible.

    Returns:
        Totals of this start (the table exists if `is_complete`), and the plan; None if the table existed before.

    Raises:
        InputError: a source has no images.
        ConfigError: an earlier start had other settings.
        StorageError: a disk is full.
    """
    manifest = write_manifest(sources, parts.manifest)
    for source in manifest.sources:
        print(f"{label}  {source}", file=sys.stderr)
    if parts.is_finished(settings):
        print(f"{label}  {parts.table} exists already, for the same images and settings", file=sys.stderr)
        return JobStats(), None
    parts.check_settings(settings, overwrite=overwrite)
    make_worker, plan = prepare(manifest.num_images)
    stats = run_rows(make_worker, parts, plan)
    if stats.is_complete:
        parts.write_table()
        parts.mark_finished(settings)
    return stats, plan


def run_reported_job(
    config: CaptionJobConfig,
    directory: str | os.PathLike[str],
    parts: Parts,
    settings: dict[str, Any],
    *,
    label: str,
    prepare: Callable[[int], tuple[MakeWorker, RowsPlan]],
    started: float,
) -> tuple[JobStats, Counter[str] | None, float]:
    """Run `run_table_job` with the job's configuration and write its usage report into `directory`.

    Args:
        started: start of the job by `time.monotonic()`.

    Returns:
        Totals of this start, totals of the table (None if the job is incomplete), and seconds since `started`.

    Raises:
        InputError, ConfigError, StorageError: as `run_table_job`.
    """
    stats, plan = run_table_job(
        parts, config.sources, settings, label=label, overwrite=config.overwrite, prepare=prepare
    )
    table = total_counts(iter_images(parts.table)) if stats.is_complete else None
    seconds = time.monotonic() - started
    write_usage(
        directory,
        stats,
        wall_seconds=seconds,
        gpus_per_actor=plan.gpus_per_actor if plan else 0,
        prices=config.prices,
        project_images=config.project_images,
        table=table,
    )
    return stats, table, seconds
