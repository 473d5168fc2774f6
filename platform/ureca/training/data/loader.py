"""What a worker is fed: its packed batches of each step, made ahead in the background.

    step k  ->  visits (index.py)  ->  parts of them for each pass of each worker (passes.py)
    a pass  ->  rows of the table, pixels, mask tiles, packed (examples.py, model/packing.py)    in threads
            ->  image tokens, where they are kept (image_tokens.py)                              in the training thread

Everything but the vision tower is done ahead: the model is used by one thread alone.
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
from ureca.training.config import BatchConfig, Cue
from ureca.training.data.examples import make_pairs, region_examples
from ureca.training.data.image_feature_cache import ImageFeatureCache
from ureca.training.data.microbatches import ImageSlice, Microbatches, load_balance, partition
from ureca.training.data.sampler import STYLES, Lengths, StepSampler, Visit
from ureca.training.data.table_index import TableIndex, open_index
from ureca.training.data.table_scan import check_masks

_LARGEST_BOX = (111.0, 222.0, 666.0, 777.0)
"""In an image of 1000 x 1000: a box whose corners take three digits each, where they are said in digits."""


@dataclass(frozen=True)
class Step:
    """A step, as far as it is known before anything is read."""

    number: int
    """Counted from 0."""
    num_tokens: int
    """Of all workers' sequences, at most: prefixes, masks, queries and captions."""
    num_microbatches: int
    """Forward passes of each worker."""
    load_balance: float
    """See passes.py."""


@dataclass(frozen=True)
class Microbatch:
    """What a worker computes at once."""

    batch: PackedBatch
    """On the CPU."""
    weight: float
    """1; or 0 for an idle pass: a worker that has nothing to do computes something that others do too, for in ZeRO 3
    all must, and nothing of it counts."""

    def weighted(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Counts or shares of the pass as they enter the step's."""
        return {name: self.weight * value for name, value in counts.items()}


@dataclass(frozen=True)
class _Prepared:
    batch: PackedBatch
    weight: float
    images: tuple[tuple[str, Tensor | None], ...]
    """Id and pixels of each image; None where its tokens are kept already."""


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
    """The steps of a plan over the images of its table.

    Raises:
        ConfigError: an image with one of its regions is longer than a pass or a step may be.
    """
    images = index.images
    sizes, which = np.unique(np.stack([images["height"], images["width"]]), axis=1, return_inverse=True)
    grids = [processor.grid((int(height), int(width))) for height, width in sizes.T]
    num_tiles = np.array([columns * rows + (columns * rows > 1) for columns, rows in grids])
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
                f"batch.{name}={budget}: image {row.image_id!r} ({row.height} x {row.width}) with one of its regions "
                f"is {longest[image]} tokens long, {lengths.prefix[image]} of them the image. Give at least that many."
            )
    return StepSampler(lengths, settings.batch, seed=settings.seed)


class BatchLoader:
    """The batches of one worker of a plan: a context, iterated over step by step, in which threads work ahead.

    with batches.begin(first_step):
        for step in batches:
            for one in batches.passes(step): ...
    """

    def __init__(
        self, directory: Path, settings: LoaderSettings, captioner: Captioner, *, rank: int, num_workers: int
    ) -> None:
        """Open the index that the driver left in the run's folder. Raises InputError if it is not of this plan."""
        self._settings, self._rank, self._num_workers = settings, rank, num_workers
        self._captioner = captioner
        table = open_index(directory)
        self._rows = table.rows()
        self._index = make_sampler(settings, table, captioner.processor)
        self.num_steps = self._index.num_steps(settings.epochs)
        """Optimizer steps of the whole training."""
        # Asked for twice: when a step's passes are made, and when they are taken.
        self._shared_out = lru_cache(maxsize=2 + settings.batch.prefetch_steps)(self._partition)
        self._tokens: ImageFeatureCache | None = None
        self._prefetch: Prefetch[_Prepared] | None = None
        self._first = 0

    def enable_feature_cache(self) -> None:
        """Compute image tokens once for each image and keep them, where the plan gives memory for it.

        The captioner's weights must be in the type they will be used in.
        """
        if self._settings.image_cache_bytes:
            self._tokens = ImageFeatureCache(self._captioner, budget_bytes=self._settings.image_cache_bytes)

    def begin(self, first_step: int) -> Self:
        """Go on at a step; what is read ahead begins there."""
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
        """That this worker has waited for data since it began."""
        assert self._prefetch is not None
        return self._prefetch.waited_seconds

    def __iter__(self) -> Iterator[Step]:
        """The steps from the first on. All passes of one must be taken before the next."""
        for number in range(self._first, self.num_steps):
            workers = self._shared_out(number)
            yield Step(
                number=number,
                num_tokens=sum(part.tokens for microbatches in workers for one in microbatches for part in one),
                num_microbatches=len(workers[0]),
                load_balance=load_balance(workers),
            )

    def microbatches(self, step: Step) -> Iterator[Microbatch]:
        """This worker's passes of a step. Must be iterated over under the autocast of the training.

        Raises:
            ImageError: an image is missing, truncated, or not of the size that the table says.
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
        """Read, decode, cut masks and pack. In a thread of its own."""
        processor = self._captioner.processor
        examples, images, whole = [], [], []
        for part in parts:
            row = self._rows[part.visit.image]
            whole.append(row)
            regions, pairs = self._regions(row, part.visit)
            is_kept = self._tokens is not None and row.image_id in self._tokens
            images.append((row.image_id, None if is_kept else processor.image_inputs(load_image(row))))
            columns, rows = processor.grid(row.size)
            # Stands for the image's tokens: packing asks for nothing but their number.
            examples.append(Example(torch.empty(columns * rows + (columns * rows > 1), 0, 0), regions, pairs))
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
    """The results of calls, in the order of the calls, some of them made ahead.

    What a call raises is raised where its result is due: errors come in the order of the calls too.
    """

    def __init__(self, calls: Iterator[Callable[[], T]], *, threads: int = 1) -> None:
        """`threads`: that make calls; with 0 each is made when it is due."""
        self._calls = calls
        self._waiting: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch") if threads else None
        self.waited_seconds = 0.0
        """That `next` has taken so far: the time that whoever uses the results has waited for them."""

    def next(self, *, ahead: int) -> T:
        """The next result; `ahead` more wait at most, or are being made, when it is given out.

        Raises:
            StopIteration: there are no more.
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
        """Leave off: what has not begun is not begun, and what has is waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
