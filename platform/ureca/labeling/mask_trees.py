"""Mask tree job: build the mask trees of a corpus as a region table without captions, and their statistics.

    sources --> manifest --pipeline/ray_data.py: an actor per CPU, TreeWorker--> parts --> TABLE, mask_trees.png

Reading, trees and resuming are the same as in labeling; nothing is captioned. The job shows, before anything is paid
for, how deep a corpus is, what is merged, and what is dropped for which reason.
"""

import asyncio
import functools
import math
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ureca.config import config_to_dict
from ureca.corpus.schema import SCHEMA_VERSION, ImageRow, RegionRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.corpus.table import canonical_digest, iter_images
from ureca.errors import InputError, StorageError
from ureca.pipeline.budget import Budget
from ureca.pipeline.config import ImageSettings, JobConfig, check_minimum
from ureca.pipeline.job import run_table_job
from ureca.pipeline.load import ImageLoader
from ureca.pipeline.parts import Parts
from ureca.pipeline.ray_data import MakeWorker, RowsPlan
from ureca.regions.tree import DROP_REASONS
from ureca.storage.files import write_bytes
from ureca.viewer.plots import histograms

PLOT_FILE = "mask_trees.png"

_SHARE_STEPS_PER_DECADE = 40
"""Area shares are counted in steps of 6 %, so quantiles need no list of all regions."""


@dataclass(frozen=True, kw_only=True)
class MaskTreesConfig(JobConfig):
    """A corpus whose mask trees to build."""

    gpus_per_actor: float = 0.0
    """GPUs per worker process, for models that propose regions."""
    images_per_block: int = 64
    """Images per block. A block is written at once, as two small files; an interruption loses unfinished blocks only.
    Raise it for fewer files, lower it to lose less work."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, {"gpus_per_actor": 0})


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Distribution of a number."""

    mean: float
    p5: float
    median: float
    p95: float
    max: float


@dataclass(frozen=True, kw_only=True)
class MaskTreesSummary:
    """Statistics of a corpus's trees: masks = regions + merged + the sum of dropped."""

    table: str
    """Path of the region table."""
    images: int
    quarantined: dict[str, int]
    """Error class -> quarantined images."""
    masks: int
    """Non-empty masks of the images that are not quarantined."""
    regions: int
    merged: int
    """Masks folded into a near-duplicate."""
    dropped: dict[str, int]
    """Reason -> masks that did not become regions."""
    repaired: dict[str, int]
    """Repair made while reading -> count."""
    levels: dict[int, int]
    """Depth, 0 at the top -> regions."""
    levels_per_image: Distribution
    regions_per_image: Distribution
    children: Distribution
    """Children of regions that have any."""
    area_share: Distribution
    """Share of the image that a region covers; within 6 %."""
    seconds: float
    """Duration of this start, including Ray's start."""
    digest: str
    """Digest of the table's content; equal for equal corpus and configuration."""


class TreeWorker:
    """Builds mask trees in one actor."""

    def __init__(self, settings: ImageSettings, budget: Budget | None, share: float) -> None:
        del budget, share  # no request is sent
        self._loader = ImageLoader(settings)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trees")

    async def work(self, row: ManifestRow) -> ImageRow:
        """Return the image's row of the region table, with a tree or quarantined.

        Raises:
            StorageError: neither this nor any other image can be read for now.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._build, row)

    def counts(self) -> Counter[str]:
        """Return no counts besides those in the rows."""
        return Counter()

    async def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)

    def _build(self, row: ManifestRow) -> ImageRow:
        step = "read"
        try:
            loaded = self._loader.read(row)
            step = "tree"
            tree, notes = self._loader.tree(loaded)
        except StorageError:
            raise
        except InputError as error:
            return ImageRow.quarantined(row.image_id, row.image_path, step, error)
        return ImageRow(
            image_id=row.image_id,
            image_path=row.image_path,
            height=loaded.size[0],
            width=loaded.size[1],
            status="unlabeled",
            regions=tuple(RegionRow.of(region) for region in tree.regions),
            notes=notes,
        )


def build_mask_trees(config: MaskTreesConfig, directory: str | os.PathLike[str]) -> MaskTreesSummary:
    """Build the trees of all images of the sources; `directory` is the run's local folder.

    Raises:
        InputError: a source has no images, or no image has a tree.
        ConfigError: an earlier start used other settings.
        JobStopped: the storage is gone; finished images are kept.
    """
    started = time.monotonic()
    parts = Parts(config.table or str(Path(directory).resolve() / "mask_trees.parquet"))

    def prepare(num_images: int) -> tuple[MakeWorker, RowsPlan]:
        return functools.partial(TreeWorker, config.image_settings()), RowsPlan(
            label="trees",
            num_images=num_images,
            images_per_block=config.images_per_block,
            images_in_flight=2 * config.images_per_block,  # build one block while the next arrives and another leaves
            actors=config.actors,
            gpus_per_actor=config.gpus_per_actor,
            crash_attempts=config.crash_attempts,
        )

    settings = tree_settings(config)
    stats, _ = run_table_job(
        parts, config.sources, settings, label="trees", overwrite=config.overwrite, prepare=prepare
    )
    stats.raise_unless_complete()
    statistics = _Statistics()
    for row in iter_images(parts.table):
        statistics.add(row)
    if statistics.images == statistics.quarantined.total():
        raise InputError(
            f"{parts.table}: none of the {statistics.images} images has a mask tree. The first error: "
            f"{statistics.first_error}"
        )
    write_bytes(Path(directory) / PLOT_FILE, statistics.plot())
    digest = canonical_digest(parts.table)
    return statistics.summary(table=parts.table, seconds=time.monotonic() - started, digest=digest)


def tree_settings(config: MaskTreesConfig) -> dict[str, Any]:
    """Return the settings that decide the trees, without location and number of processes."""
    return {
        "sources": list(config.sources),
        "images": config_to_dict(config.image_settings()),
        "schema_version": SCHEMA_VERSION,
    }


class _Statistics:
    """Statistics of a table's rows, in memory independent of its size."""

    def __init__(self) -> None:
        self.images = 0
        self.quarantined: Counter[str] = Counter()
        self.first_error = ""
        self.notes: Counter[str] = Counter()
        self.depths: Counter[int] = Counter()
        self.levels_per_image: Counter[int] = Counter()
        self.regions_per_image: Counter[int] = Counter()
        self.children: Counter[int] = Counter()
        self.area_steps: Counter[int] = Counter()

    def add(self, row: ImageRow) -> None:
        self.images += 1
        if row.error is not None:
            self.quarantined[row.error.kind] += 1
            self.first_error = self.first_error or row.error.message
            return
        self.notes.update(row.notes)
        depths = [region.depth for region in row.regions]
        self.depths.update(depths)
        self.levels_per_image[max(depths, default=-1) + 1] += 1
        self.regions_per_image[len(row.regions)] += 1
        self.children.update(Counter(region.parent for region in row.regions if region.parent >= 0).values())
        num_pixels = row.size[0] * row.size[1]
        shares = np.array([region.area / num_pixels for region in row.regions])
        self.area_steps.update(np.round(np.log10(shares) * _SHARE_STEPS_PER_DECADE).astype(int).tolist())

    def summary(self, *, table: str, seconds: float, digest: str) -> MaskTreesSummary:
        regions = self.depths.total()
        dropped: dict[str, int] = {reason: self.notes[reason] for reason in DROP_REASONS if self.notes[reason]}
        not_repairs = {"merged", *DROP_REASONS}
        return MaskTreesSummary(
            table=table,
            images=self.images,
            quarantined=dict(sorted(self.quarantined.items())),
            masks=regions + self.notes["merged"] + sum(dropped.values()),
            regions=regions,
            merged=self.notes["merged"],
            dropped=dropped,
            repaired={name: number for name, number in sorted(self.notes.items()) if name not in not_repairs},
            levels=dict(sorted(self.depths.items())),
            levels_per_image=_distribution(self.levels_per_image),
            regions_per_image=_distribution(self.regions_per_image),
            children=_distribution(self.children),
            area_share=_distribution({_share_of(step): number for step, number in self.area_steps.items()}),
            seconds=round(seconds, 1),
            digest=digest,
        )

    def plot(self) -> bytes:
        """Plot the statistics as PNG."""
        decades: Counter[int] = Counter()
        for step, number in self.area_steps.items():
            decades[math.floor(step / _SHARE_STEPS_PER_DECADE)] += number
        decades[-1] += decades.pop(0, 0)  # exactly the entire image
        return histograms(
            {
                "regions by depth": {str(depth): number for depth, number in sorted(self.depths.items())},
                "images by levels": {str(levels): number for levels, number in sorted(self.levels_per_image.items())},
                "images by regions": _count_by_doubling_ranges(self.regions_per_image),
                "regions by children": _count_by_doubling_ranges(self.children),
                "regions by share of the image": {
                    f"{100 * 10.0**decade:g} to {1000 * 10.0**decade:g} %": number
                    for decade, number in sorted(decades.items())
                },
                "masks that did not become regions": {
                    reason.replace("_", " "): self.notes[reason] for reason in ("merged", *DROP_REASONS)
                },
            }
        )


def _share_of(step: int) -> float:
    return float(10 ** (step / _SHARE_STEPS_PER_DECADE))


def _count_by_doubling_ranges(counts: Counter[int]) -> dict[str, int]:
    """Count values in the ranges 2**k + 1 to 2**(k + 1)."""
    bins: Counter[int] = Counter()
    for value, number in counts.items():
        bins[(value - 1).bit_length() if value > 0 else -1] += number

    def name(power: int) -> str:
        first, last = 2 ** (power - 1) + 1 if power > 0 else power + 1, 2**power if power >= 0 else 0
        return str(last) if first >= last else f"{first} to {last}"

    return {name(power): bins[power] for power in sorted(bins)}


def _distribution(counts: Any) -> Distribution:
    """Compute the distribution of values from their counts."""
    values = np.array(sorted(counts), dtype=np.float64)
    if not len(values):
        return Distribution(mean=0, p5=0, median=0, p95=0, max=0)
    numbers = np.array([counts[value] for value in sorted(counts)])
    reached = np.cumsum(numbers) / numbers.sum()

    def quantile(share: float) -> float:
        return round(float(values[np.searchsorted(reached, share)]), 6)

    return Distribution(
        mean=round(float((values * numbers).sum() / numbers.sum()), 6),
        p5=quantile(0.05),
        median=quantile(0.5),
        p95=quantile(0.95),
        max=round(float(values[-1]), 6),
    )
