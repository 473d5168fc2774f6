"""Batch loader of a worker: packed microbatches of each step, prepared ahead in background threads.

    step k      ->  visits (sampler.py)  ->  slices of them for each microbatch of each worker (microbatches.py)
    microbatch  ->  table rows, pixels, mask tiles, packed (examples.py, model/packing.py)    in threads
                ->  image features, if cached (image_feature_cache.py)                        in the training thread

Threads do everything but the vision tower: only the training thread uses the model.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import load_image
from ureca.errors import ConfigError, MaskError
from ureca.model.captioner import Captioner
from ureca.model.flops import Counts
from ureca.model.packing import Example, PackedBatch, RegionExample, pack
from ureca.model.processor import CaptionerProcessor
from ureca.regions.tiles import with_thumbnail
from ureca.training.config import BatchConfig, Cue
from ureca.training.data.examples import make_pairs, region_examples
from ureca.training.data.image_feature_cache import ImageFeatureCache
from ureca.training.data.microbatches import ImageSlice, Microbatches, load_balance, partition
from ureca.training.data.sampler import STYLES, Lengths, StepSampler, Visit
from ureca.training.data.table_index import TableIndex, open_index
from ureca.training.data.table_scan import check_masks

_LARGEST_BOX = (111.0, 222.0, 666.0, 777.0)
"""Box in a 1000 x 1000 image whose corners take three digits each: the longest box text."""


@dataclass(frozen=True)
class Step:
    """A step as planned, before any data is read."""

    number: int
    """Step number, counted from 0."""
    num_tokens: int
    """Upper bound of the tokens of all workers' sequences: prefixes, masks, queries and captions."""
    num_microbatches: int
    """Microbatches of each worker."""
    load_balance: float
    """Load balance of the workers (`microbatches.load_balance`)."""


@dataclass(frozen=True)
class Microbatch:
    """A packed batch for one forward and backward."""

    batch: PackedBatch
    """The batch, on the CPU."""
    weight: float
    """1, or 0 for an idle microbatch. A worker without work computes one anyway, because ZeRO 3 needs all workers in
    every forward; its results have no weight."""

    def weighted(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Scale counts or shares of the microbatch by its weight."""
        return {name: self.weight * value for name, value in counts.items()}


@dataclass(frozen=True)
class _Prepared:
    batch: PackedBatch
    weight: float
    images: tuple[tuple[str, Tensor | None], ...]
    """Id and pixels of each image; pixels are None for cached images."""


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Settings of a run that decide its batches."""

    table: str
    """Path of the region table, for error messages."""
    batch: BatchConfig
    epochs: float
    seed: int
    cue: Cue
    tokens_per_tile: int
    """Mask tokens per mask tile."""
    only_touched_tiles: bool
    """Encode only the mask tiles that a region touches."""
    rejected_per_region: int | None = None
    """Preference pairs per region in stage 3; None trains on captions alone."""
    image_cache_bytes: int = 0
    """Memory for cached image features; 0 computes them in every epoch."""


def make_sampler(settings: LoaderSettings, index: TableIndex, processor: CaptionerProcessor) -> StepSampler:
    """Create the step sampler of a run from its table index.

    Raises:
        ConfigError: an image with one region exceeds the token limit of a microbatch or a step.
    """
    images = index.images
    sizes, which = np.unique(np.stack([images["height"], images["width"]]), axis=1, return_inverse=True)
    grids = [processor.grid((int(height), int(width))) for height, width in sizes.T]
    num_tiles = np.array([with_thumbnail(columns * rows) for columns, rows in grids])
    prefix = np.array([len(processor.prefix_ids(int(tiles))) for tiles in num_tiles])
    of_image = which.reshape(-1)
    shown = index.tiles if settings.only_touched_tiles else np.repeat(num_tiles[of_image], images["regions"])
    mask = (
        shown.astype(np.int32) * settings.tokens_per_tile + 2
        if settings.cue == "mask"
        else np.zeros(len(index.tiles), np.int32)
    )
    queries = [processor.query(style, cue=settings.cue, box=_LARGEST_BOX, size=(1000, 1000)) for style in STYLES]
    lengths = Lengths(
        keys=images["key"],
        regions=images["regions"],
        branches=index.branches,
        prefix=prefix[of_image],
        mask=mask,
        query=np.array([len(processor.branch_ids(query)) for query in queries]),
        captions=index.captions,
    )
    longest = lengths.longest()
    image = int(longest.argmax())
    budgets = {"tokens_per_device": settings.batch.tokens_per_device, "tokens_per_step": settings.batch.tokens_per_step}
    for name, budget in budgets.items():
        if budget is not None and longest[image] > budget:
            row = index.rows()[image]
            raise ConfigError(
                f"batch.{name}={budget}: image {row.image_id!r} ({row.height} x {row.width}) with one region has "
                f"{longest[image]} tokens, {lengths.prefix[image]} of them for the image. Set the limit to at least "
                "that number."
            )
    return StepSampler(lengths, settings.batch, seed=settings.seed)


class BatchLoader:
    """Batches of one worker: a context manager that yields steps while threads prepare the next ones.

    with loader.begin(first_step):
        for step in loader:
            for microbatch in loader.microbatches(step): ...
    """

    def __init__(
        self, directory: Path, settings: LoaderSettings, captioner: Captioner, *, rank: int, num_workers: int
    ) -> None:
        """Open the table index in the run's folder. Raises InputError if the index belongs to another plan."""
        self._settings, self._rank, self._num_workers = settings, rank, num_workers
        self._captioner = captioner
        table = open_index(directory)
        self._rows = table.rows()
        self._index = make_sampler(settings, table, captioner.processor)
        self.num_steps = self._index.num_steps(settings.epochs)
        """Optimizer steps of the run."""
        # Each step is partitioned twice: when its microbatches are prepared, and when they are consumed.
        self._shared_out = lru_cache(maxsize=2 + settings.batch.prefetch_steps)(self._partition)
        self._tokens: ImageFeatureCache | None = None
        self._prefetch: Prefetch[_Prepared] | None = None
        self._first = 0

    def enable_feature_cache(self) -> None:
        """Cache image features, if the settings reserve memory for it.

        Call this after the captioner's weights have their final dtype.
        """
        if self._settings.image_cache_bytes:
            self._tokens = ImageFeatureCache(self._captioner, budget_bytes=self._settings.image_cache_bytes)

    def begin(self, first_step: int) -> Self:
        """Start at a step; prefetching starts there too."""
        self._first = first_step
        return self

    def __enter__(self) -> Self:
        batch = self._settings.batch
        threads = batch.prefetch_threads if batch.prefetch_steps else 0
        self._prefetch = Prefetch(self._calls(self._first), threads=threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._prefetch is not None
        self._prefetch.close()

    @property
    def waited_seconds(self) -> float:
        """Seconds that this worker has waited for data since the start."""
        assert self._prefetch is not None
        return self._prefetch.waited_seconds

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps from the first on. Consume all microbatches of a step before the next step."""
        for number in range(self._first, self.num_steps):
            workers = self._shared_out(number)
            yield Step(
                number=number,
                num_tokens=sum(part.tokens for microbatches in workers for one in microbatches for part in one),
                num_microbatches=len(workers[0]),
                load_balance=load_balance(workers),
            )

    def microbatches(self, step: Step) -> Iterator[Microbatch]:
        """Yield this worker's microbatches of a step. Iterate under the training's autocast.

        Raises:
            ImageError: an image is missing, truncated, or differs from the size in the table.
            MaskError: a region's mask can't be decoded.
            InputError: the table has changed.
        """
        assert self._prefetch is not None
        last = min(step.number + self._settings.batch.prefetch_steps, self.num_steps - 1)
        later = sum(len(self._shared_out(number)[0]) for number in range(step.number + 1, last + 1))
        for left in reversed(range(step.num_microbatches)):
            yield self._with_images(self._prefetch.next(ahead=left + later))

    def _partition(self, step: int) -> list[Microbatches]:
        parts = [ImageSlice.of(visit, self._index) for visit in self._index.visits(step)]
        budget = self._settings.batch.tokens_per_device
        return partition(parts, num_workers=self._num_workers, tokens_per_device=budget)

    def _calls(self, first: int) -> Iterator[Callable[[], _Prepared]]:
        for step in range(first, self.num_steps):
            workers = self._shared_out(step)
            shortest = min(
                (part for microbatches in workers for one in microbatches for part in one), key=lambda p: p.tokens
            )
            for parts in workers[self._rank]:
                if parts:
                    yield partial(self._prepare, parts, weight=1.0)
                else:
                    yield partial(self._prepare, [shortest.slice(0, 1)], weight=0.0)

    def _prepare(self, parts: list[ImageSlice], *, weight: float) -> _Prepared:
        """Read, decode, cut mask tiles and pack. Runs in a prefetching thread."""
        processor = self._captioner.processor
        examples, images, whole = [], [], []
        for part in parts:
            row = self._rows[part.visit.image]
            whole.append(row)
            regions, pairs = self._regions(row, part.visit)
            is_kept = self._tokens is not None and row.image_id in self._tokens
            images.append((row.image_id, None if is_kept else processor.image_inputs(load_image(row))))
            columns, rows = processor.grid(row.size)
            # Placeholder for the image features: packing only needs their number.
            examples.append(Example(torch.empty(with_thumbnail(columns * rows), 0, 0), regions, pairs))
        try:
            batch = pack(examples, processor, **self._captioner.pack_options())
        except MaskError:
            for row in whole:
                check_masks(self._settings.table, row)
            raise
        num_tiles = sum(len(pixels) for _, pixels in images if pixels is not None)
        counts = replace(batch.counts, tiles=num_tiles) if weight else Counts()
        batch = replace(batch, counts=counts)
        return _Prepared(batch, weight, tuple(images))

    def _regions(self, row: ImageRow, visit: Visit) -> tuple[tuple[RegionExample, ...], tuple[tuple[int, int], ...]]:
        settings, processor = self._settings, self._captioner.processor
        if settings.rejected_per_region is not None:
            rejected = settings.rejected_per_region
            return make_pairs(row, visit, processor, rejected_per_region=rejected, seed=settings.seed)
        return region_examples(row, visit, self._index.styles(visit), processor, cue=settings.cue), ()

    def _with_images(self, prepared: _Prepared) -> Microbatch:
        if self._tokens is not None:
            tokens = [self._tokens(image_id, pixels) for image_id, pixels in prepared.images]
            return Microbatch(replace(prepared.batch, image_features=torch.cat(tokens)), prepared.weight)
        pixels = torch.cat([pixels for _, pixels in prepared.images if pixels is not None])
        batch = replace(prepared.batch, image_features=None, pixel_values=pixels.to(self._captioner.base.dtype))
        return Microbatch(batch, prepared.weight)


T = TypeVar("T")


class Prefetch(Generic[T]):
    """Results of calls, in call order, computed ahead by threads.

    An exception of a call is raised when its result is due, so errors keep the order of the calls.
    """

    def __init__(self, calls: Iterator[Callable[[], T]], *, threads: int = 1) -> None:
        """Take the calls and the number of threads; with 0 threads each call runs when its result is due."""
        self._calls = calls
        self._waiting: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch") if threads else None
        self.waited_seconds = 0.0
        """Total time spent in `next`: how long the consumer has waited."""

    def next(self, *, ahead: int) -> T:
        """Return the next result, keeping at most `ahead` further results computed or in progress.

        Raises:
            StopIteration: no calls are left.
        """
        started = time.monotonic()
        try:
            if self._pool is None:
                return next(self._calls)()
            self._fill(1 + ahead)
            if not self._waiting:
                raise StopIteration
            return self._waiting.popleft().result()
        finally:
            self.waited_seconds += time.monotonic() - started

    def _fill(self, number: int) -> None:
        assert self._pool is not None
        while len(self._waiting) < number:
            call = next(self._calls, None)
            if call is None:
                return
            self._waiting.append(self._pool.submit(call))

    def close(self) -> None:
        """Cancel calls that have not started and wait for the running ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
