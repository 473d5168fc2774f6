"""Label a corpus with Ray Data, so that it can be stopped at any time and goes on where it was.

    manifest.parquet --read--> blocks of a few rows --actors: label_image--> parts/*.parquet --> TABLE
                                                                  checkpoint/ (ids of rows written)

A row is an image; labeled or quarantined, it is written and checkpointed once, together with its block. Ray
Data's row checkpoint resumes exactly this shape of plan: a read, stages in between, a write. When all rows
are there they are put into one table, sorted by image id, so that two runs give the same table whatever the
order in which the actors finished. Everything but the table lies in the folder TABLE.parts and stays there:
the same command again finds all rows done, or labels only images that were added.
"""

import asyncio
import contextlib
import functools
import hashlib
import logging
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ureca import io
from ureca.cluster import connect
from ureca.config import config_to_dict
from ureca.corpus import (
    SCHEMA_VERSION,
    ImageRow,
    ManifestRow,
    canonical_digest,
    iter_images,
    iter_manifest,
    rows_to_table,
    write_manifest,
    write_regions,
)
from ureca.errors import InputError
from ureca.labeling.attributes_describer import AttributesDescriber
from ureca.labeling.config import LabelConfig
from ureca.labeling.describer import Describer
from ureca.labeling.walk import NOT_UNIQUE, Truth, label_image
from ureca.runs import Progress
from ureca.scenes import read_truth
from ureca.scenes.files import TRUTH_FILE

_LOOK_EVERY_SECONDS = 1.0
_CONCURRENT_BLOCKS = 4
"""Blocks that an actor works on at once, so that a slow image does not leave its describer idle."""

_OTHER_CPUS = 2
"""CPUs that must be free beside the actors: for reading and writing, and for leaving out what is done."""

_NO_PROGRESS_SECONDS = 6 * 3600.0
"""Ray Data gives up after half an hour without a finished block; machines may take longer to come up."""


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
    """Share of regions whose caption fits no other region of its image."""
    label_seconds: float
    """Of this start, Ray's own start included."""
    regions_per_second: float | None
    """Regions labeled in this start over `label_seconds`; None if all had been labeled before."""
    digest: str
    """Of the table's content; equal for equal corpus and configuration."""


def label_corpus(config: LabelConfig, directory: str | os.PathLike[str]) -> LabelSummary:
    """Label all images of the sources into one region table; `directory` is the run's local folder.

    Raises:
        InputError: a source without images, or not one image could be labeled.
    """
    started = time.monotonic()
    table = config.table or str(Path(directory).resolve() / "regions.parquet")
    work = _Work(table)
    num_images = write_manifest(config.sources, work.manifest).num_images
    settings = _settings(config)
    if work.is_finished(settings):
        print(f"label  {table} is there already, of the same images and settings", file=sys.stderr)
        done = {row.image_id for row in iter_manifest(work.manifest)}
    else:
        work.drop_rows_of_other_settings(settings)
        done = set(work.places())
        connect()
        _label_rows(config, work, num_images)
        _write_table(work)
        work.mark_finished(settings)
    return _summarize(table, done, time.monotonic() - started)


class _Work:
    """The folder TABLE.parts."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.folder = f"{table}.parts"
        self.manifest = f"{self.folder}/manifest.parquet"
        self.rows = f"{self.folder}/rows"
        self.checkpoint = f"{self.folder}/checkpoint"
        self._settings = f"{self.folder}/settings.json"
        self._finished = f"{self.folder}/finished.json"

    def is_finished(self, settings: dict[str, Any]) -> bool:
        """Whether the table was put together from these images with these settings."""
        if not (io.exists(self._finished) and io.exists(self.table)):
            return False
        return bool(io.read_json(self._finished) == self._finished_as(settings))

    def mark_finished(self, settings: dict[str, Any]) -> None:
        io.write_json(self._finished, self._finished_as(settings))

    def _finished_as(self, settings: dict[str, Any]) -> dict[str, Any]:
        manifest = hashlib.sha256(io.read_bytes(self.manifest)).hexdigest()
        return {"settings": settings, "manifest_sha256": manifest}

    def drop_rows_of_other_settings(self, settings: dict[str, Any]) -> None:
        """Rows of an earlier start are kept only if they would come out the same now."""
        if io.exists(self._settings) and io.read_json(self._settings) != settings:
            print(f"label  settings have changed: labeling anew ({self.folder})", file=sys.stderr)
            for path in (self.rows, self.checkpoint):
                if io.exists(path):
                    filesystem, inner = io.filesystem(path)
                    filesystem.delete_dir(inner)
        io.write_json(self._settings, settings)

    def places(self) -> dict[str, tuple[str, int]]:
        """Image id -> (file, place in it) of every row that has been written."""
        found: dict[str, tuple[str, int]] = {}
        for path in io.list_files(self.rows, ".parquet") if io.exists(self.rows) else []:
            with contextlib.suppress(OSError, pa.ArrowInvalid):  # a killed start's; its rows are labeled again
                ids = _read(path, ["image_id"])["image_id"].to_pylist()
                found.update({image_id: (path, place) for place, image_id in enumerate(ids)})
        return found


def _settings(config: LabelConfig) -> dict[str, Any]:
    """What labels depend on; where they are written and by how many processes is no part of it."""
    settings = config_to_dict(config)
    for name in ("run_directory", "table", "actors", "images_per_block"):
        del settings[name]
    describer = _make_describer(config)
    return {
        **settings,
        "walk": config_to_dict(config.walk()),
        "model": describer.model,
        "prompt_version": describer.prompt_version,
        "schema_version": SCHEMA_VERSION,
    }


def _make_describer(config: LabelConfig) -> Describer:
    return {"attributes": AttributesDescriber}[config.describer]()


class _Labeler:
    """Ray Data's stage: blocks of manifest rows in, blocks of region table rows out. One per actor."""

    def __init__(self, config: LabelConfig) -> None:
        self._walk = config.walk()
        self._describer = _make_describer(config)

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        rows = [ManifestRow(**record) for record in block.to_pylist()]
        outcomes = await asyncio.gather(
            *(label_image(row, self._describer, self._walk, _true_attributes(row)) for row in rows)
        )
        yield rows_to_table(outcome.row for outcome in outcomes)


def _true_attributes(row: ManifestRow) -> Truth | None:
    """What is true of a drawn scene's regions; None for every other image."""
    folder, name = os.path.split(row.image_path)
    regions = _truth_of_folder(folder).get(os.path.splitext(name)[0])
    return regions and {region_id: region["attributes"] for region_id, region in regions.items()}


@functools.lru_cache(maxsize=4)
def _truth_of_folder(folder: str) -> dict[str, dict[str, dict[str, Any]]]:
    return read_truth(folder) if os.path.isfile(os.path.join(folder, TRUTH_FILE)) else {}


def _label_rows(config: LabelConfig, work: _Work, num_images: int) -> None:
    """Run the plan; returns when every row of the manifest is in work.rows."""
    # Only now: `connect` has to come before Ray is first imported.
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig

    for name, level in {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)  # it tells of each stage, and that its bars are off
    filesystem, manifest = io.filesystem(work.manifest)
    _, rows = io.filesystem(work.rows)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []  # advice on memory, in the middle of the progress lines
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _NO_PROGRESS_SECONDS
    checkpoint = CheckpointConfig(
        id_column="image_id",
        checkpoint_path=work.checkpoint,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,  # what the next start of the same command goes by
    )
    # An actor of Ray Data's own leaves out the rows that are done. One is enough for rows this small, and its
    # 1 GiB by default would keep a small machine waiting for ever.
    checkpoint.checkpoint_actor_pool_max_size = 1
    checkpoint.checkpoint_actor_memory_bytes = 256 * 2**20
    context.checkpoint_config = checkpoint
    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    num_blocks = math.ceil(num_images / config.images_per_block)
    num_actors = config.actors or max(1, min(num_cpus - _OTHER_CPUS, num_blocks))
    print(f"label  {num_images} images, starting {num_actors} actors", file=sys.stderr, flush=True)
    if num_actors + _OTHER_CPUS > num_cpus:
        print(
            f"label  waits until the cluster has {num_actors + _OTHER_CPUS} CPUs ({num_actors} for actors, "
            f"{_OTHER_CPUS} for reading and writing); it has {num_cpus}",
            file=sys.stderr,
        )
    with DataContext.current(context), _watched(work.rows, num_images):
        (
            ray.data.read_parquet(manifest, filesystem=filesystem)
            .repartition(target_num_rows_per_block=config.images_per_block)
            .map_batches(
                _Labeler,
                fn_constructor_kwargs={"config": config},
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1,
                compute=ActorPoolStrategy(size=num_actors, max_concurrent_calls_per_actor=_CONCURRENT_BLOCKS),
            )
            .write_parquet(rows, filesystem=filesystem)
        )


@contextlib.contextmanager
def _watched(rows: str, num_images: int) -> Iterator[None]:
    """Show how many rows have been written while the body runs, from the files it leaves."""
    progress = Progress("label", num_images, unit="images")
    stop = threading.Event()
    counted: dict[str, Counter[str]] = {}

    def look() -> None:
        for path in io.list_files(rows, ".parquet") if io.exists(rows) else []:
            if path not in counted:
                with contextlib.suppress(OSError, pa.ArrowInvalid):  # a file that is still being written
                    counted[path] = Counter(_read(path, ["status"])["status"].to_pylist())
        total = sum(counted.values(), Counter())
        progress.update(total.total(), quarantined=total["quarantined"])

    def keep_looking() -> None:
        while not stop.wait(_LOOK_EVERY_SECONDS):
            look()

    watcher = threading.Thread(target=keep_looking, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        look()
        progress.close()


def _read(path: str, columns: list[str] | None = None) -> pa.Table:
    filesystem, inner = io.filesystem(path)
    return pq.read_table(inner, filesystem=filesystem, columns=columns)


def _write_table(work: _Work) -> None:
    """Put the rows of the manifest's images into one table, sorted by image id.

    Rows of images that have left the sources since an earlier start are left out.
    """
    wanted = {row.image_id for row in iter_manifest(work.manifest)}
    places = work.places()
    missing = wanted - set(places)
    assert not missing, f"{len(missing)} images were neither labeled nor set aside, e.g. {min(missing)}"

    @functools.lru_cache(maxsize=32)  # neighbors in the order of ids were mostly written together
    def records(path: str) -> list[dict[str, Any]]:
        return _read(path).to_pylist()

    def row(image_id: str) -> ImageRow:
        path, place = places[image_id]
        return ImageRow.from_record(records(path)[place])

    write_regions(work.table, (row(image_id) for image_id in sorted(wanted)))


def _summarize(table: str, done_before: set[str], seconds: float) -> LabelSummary:
    new_regions = 0
    quarantined: Counter[str] = Counter()
    labeled = regions = flagged = not_unique = 0
    first_error = ""
    for row in iter_images(table):
        if row.error:
            quarantined[row.error.kind] += 1
            first_error = first_error or row.error.message
            continue
        labeled += 1
        regions += len(row.regions)
        new_regions += len(row.regions) if row.image_id not in done_before else 0
        flagged += sum(bool(region.flags) for region in row.regions)
        not_unique += sum(NOT_UNIQUE in region.flags for region in row.regions)
    if not labeled:
        raise InputError(f"{table}: not one of {quarantined.total()} images could be labeled. The first: {first_error}")
    return LabelSummary(
        table=table,
        images=labeled + quarantined.total(),
        labeled=labeled,
        quarantined=dict(sorted(quarantined.items())),
        regions=regions,
        flagged=flagged,
        unique_share=round(1 - not_unique / max(regions, 1), 6),
        label_seconds=round(seconds, 1),
        regions_per_second=round(new_regions / seconds, 2) if new_regions else None,
        digest=canonical_digest(table),
    )
