"""Label a corpus, so that it can be stopped at any time and goes on where it was.

    sources --> manifest --rows.py: an actor per CPU, LabelWorker--> parts --> TABLE, ledger

Labeled or set aside, each image is a row that is written once. When all rows are there they are put into one
table, sorted by image id, so that two runs give the same table whatever the order in which the actors finished.
Everything but the table lies in the folder TABLE.parts and stays there: the same command again finds all rows
done, or labels only images that were added.
"""

import functools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca.config import config_to_dict
from ureca.corpus import SCHEMA_VERSION, canonical_digest, iter_images, write_manifest
from ureca.errors import InputError
from ureca.io import write_json
from ureca.labeling.config import LabelConfig
from ureca.labeling.describer import Budget
from ureca.labeling.label_worker import DescriberRecipe, LabelWorker
from ureca.labeling.ledger import Held, ledger_lines, make_ledger, total_counts
from ureca.labeling.parts import Parts
from ureca.labeling.rows import RowsPlan, RowWorker, cluster_resources, run_rows
from ureca.labeling.steward import Account
from ureca.labeling.vllm_describer import gpus_per_actor
from ureca.labeling.walk import NOT_UNIQUE

LEDGER_FILE = "ledger.json"


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """What a labeling job did: images = labeled + the sum of quarantined."""

    table: str
    """Where the region table is."""
    images: int
    labeled: int
    quarantined: dict[str, int]
    """Error class -> images set aside for it."""
    regions: int
    flagged: int
    """Regions with a flag of any kind."""
    unique_share: float
    """Share of regions whose caption is mistaken for no other region of its image."""
    label_seconds: float
    """Of this start, Ray's own start included."""
    regions_per_second: float | None
    """Regions labeled in this start over `label_seconds`; None if all had been labeled before."""
    digest: str
    """Of the table's content; equal for equal corpus and configuration."""


def table_of(config: LabelConfig, directory: str | os.PathLike[str]) -> str:
    """Where the job's region table is, or will be."""
    return config.table or str(Path(directory).resolve() / "regions.parquet")


def label_corpus(
    config: LabelConfig,
    directory: str | os.PathLike[str],
    make_worker: Callable[[DescriberRecipe, Budget | None, float], RowWorker] = LabelWorker,
) -> LabelSummary:
    """Label all images of the sources into one region table; `directory` is the run's local folder.

    `make_worker` makes what works on the images in each actor.

    Raises:
        InputError: a source without images, or not one image could be labeled.
        ConfigError: an earlier start labeled with other settings, or the describer can't answer.
        JobStopped: tokens, endpoint or storage are gone; what is labeled is kept.
    """
    started = time.monotonic()
    parts = Parts(table_of(config, directory))
    recipe = DescriberRecipe.read(config)
    settings = label_settings(config, recipe)
    manifest = write_manifest(config.sources, parts.manifest)
    for source in manifest.sources:
        print(f"label  {source}", file=sys.stderr)
    account, plan = Account(), None
    if parts.is_finished(settings):
        print(f"label  {parts.table} is there already, of the same images and settings", file=sys.stderr)
    else:
        parts.check_settings(settings, anew=config.anew)
        recipe.check()
        plan = rows_plan(config, manifest.num_images, cluster_resources())
        account = run_rows(functools.partial(make_worker, recipe), parts, plan)
        if not account.is_whole:
            _write_ledger(config, directory, account, plan.gpus_per_actor, started, table=None)
            account.raise_unless_whole()
        parts.write_table()
        parts.mark_finished(settings)
    table = total_counts(iter_images(parts.table))
    _write_ledger(config, directory, account, plan.gpus_per_actor if plan else 0, started, table=table)
    return _summarize(parts.table, table, account, time.monotonic() - started)


def rows_plan(config: LabelConfig, num_images: int, resources: Mapping[str, float]) -> RowsPlan:
    """How the corpus is spread over a cluster that has these resources.

    Raises:
        ConfigError: it has too few GPUs for one actor.
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
    if not cluster_gpus and os.environ.get("RAY_ADDRESS") and config.vllm.model != "nano":
        cluster_gpus = math.inf  # a cluster's machines with GPUs may come only when they are asked for
    return gpus_per_actor(config.vllm, cluster_gpus)


def label_settings(config: LabelConfig, recipe: DescriberRecipe) -> dict[str, Any]:
    """What labels depend on; where they are written, how fast, and by how many processes is no part of it."""
    return {
        "sources": list(config.sources),
        "walk": config_to_dict(config.walk()),
        "schema_version": SCHEMA_VERSION,
        **recipe.settings(),
    }


def _write_ledger(
    config: LabelConfig,
    directory: str | os.PathLike[str],
    account: Account,
    gpus: float,
    started: float,
    *,
    table: Counter[str] | None,
) -> None:
    """Write and print the account, stopped or done."""
    now = time.time()
    held = sum(now - since for since in account.actors.values())
    ledger = make_ledger(
        account.counts,
        Held(
            wall_seconds=time.monotonic() - started,
            gpu_seconds=held * gpus,
            cpu_seconds=held,
        ),
        config.prices,
        table=table,
        project_images=config.project_images,
    )
    path = Path(directory) / LEDGER_FILE
    write_json(path, ledger)
    print("\n".join([*ledger_lines(ledger), f"account written to {path}"]), file=sys.stderr)


def _summarize(table: str, counts: Counter[str], account: Account, seconds: float) -> LabelSummary:
    quarantined = {
        name.removeprefix("quarantined:"): number for name, number in counts.items() if name.startswith("quarantined:")
    }
    if counts["images"] == counts["quarantined"]:
        first = next((row.error.message for row in iter_images(table) if row.error), "")
        raise InputError(f"{table}: not one of {counts['images']} images could be labeled. The first: {first}")
    regions = account.counts["regions"]
    return LabelSummary(
        table=table,
        images=counts["images"],
        labeled=counts["images"] - counts["quarantined"],
        quarantined=dict(sorted(quarantined.items())),
        regions=counts["regions"],
        flagged=counts["flagged"],
        unique_share=round(1 - counts[f"flagged:{NOT_UNIQUE}"] / max(counts["regions"], 1), 6),
        label_seconds=round(seconds, 1),
        regions_per_second=round(regions / seconds, 2) if regions else None,
        digest=canonical_digest(table),
    )
