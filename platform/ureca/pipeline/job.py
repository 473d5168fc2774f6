"""From sources to a whole region table, so that the same command goes on where it was: what all such jobs share.

sources --> manifest --rows.py: actors--> parts --> TABLE
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ureca.corpus.sources.parse import write_manifest
from ureca.pipeline.coordinator import JobStats
from ureca.pipeline.parts import Parts
from ureca.pipeline.ray_data import MakeWorker, RowsPlan, run_rows


def run_table_job(
    parts: Parts,
    sources: Sequence[str],
    settings: dict[str, Any],
    *,
    label: str,
    overwrite: bool,
    prepare: Callable[[int], tuple[MakeWorker, RowsPlan]],
) -> tuple[JobStats, RowsPlan | None]:
    """Work on every image that is not in the parts yet, and put the table together once all are there.

    Args:
        parts: the table and the folder beside it.
        sources: of images and masks.
        settings: what the rows depend on; an earlier start with others is refused.
        label: what printed lines begin with.
        anew: delete what an earlier start with other settings made.
        prepare: called with the number of images when there is something to do: who works on them, and how they are
            spread. May raise what makes the job impossible.

    Returns:
        What this start did (the table is there if `is_complete`), and its plan; None if the table was there before.

    Raises:
        InputError: a source without images.
        ConfigError: an earlier start had other settings.
        StorageError: a disk is full.
    """
    manifest = write_manifest(sources, parts.manifest)
    for source in manifest.sources:
        print(f"{label}  {source}", file=sys.stderr)
    if parts.is_finished(settings):
        print(f"{label}  {parts.table} is there already, of the same images and settings", file=sys.stderr)
        return JobStats(), None
    parts.check_settings(settings, overwrite=overwrite)
    make_worker, plan = prepare(manifest.num_images)
    stats = run_rows(make_worker, parts, plan)
    if stats.is_complete:
        parts.write_table()
        parts.mark_finished(settings)
    return stats, plan
