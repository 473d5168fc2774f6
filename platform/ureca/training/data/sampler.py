"""Step sampler: the regions of each step, from seed and step number alone, for any number of workers.

    visit       an image's turn in an epoch: all its regions, or a chunk of them with `regions_per_visit`
    stream      [ visits of epoch 0, shuffled by its seed | visits of epoch 1, shuffled by its seed | ... ]
    step k      the next piece of the stream: `images_per_step` visits, `regions_per_step` regions, or as many regions
                as fit `tokens_per_step`; a piece that ends within a visit is continued by the next step

The step number alone determines where a run resumes, every region appears once per epoch, and a step may span two
epochs. A hash of (seed, epoch, image id, region index) draws the query style of each region, and the regions shown when
`regions_per_image` limits them.

Tokens are counted as in the packed sequence: an image's prefix once per step that shows any of the image, plus each
region's mask tokens (an upper bound: the tiles its box touches), query and caption. With `tokens_per_step` a step ends
within an image only where the tokens gained outweigh the prefix, which is then computed twice.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from ureca.training.config import BatchConfig

STYLES = ("brief", "detailed", "unique")
"""Query styles, in the order of `short_caption`, `long_caption`, `caption` of the region table."""

STYLE_WEIGHTS = (1, 1, 2)
"""Relative frequency of the styles. `unique` is twice as frequent: captioners are used and scored with it."""


@dataclass(frozen=True)
class Visit:
    """An image's turn in a step: its regions, and the epoch that seeds the draws."""

    image: int
    """Index of the image in the order of image ids."""
    epoch: int
    regions: tuple[int, ...]
    """Indices of the regions in the image's list, ascending."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Token counts of I images with R regions in total; the regions of an image are consecutive."""

    keys: np.ndarray
    """(I,) uint64 hashes of the image ids."""
    regions: np.ndarray
    """(I,) number of trainable regions per image, 1 or more."""
    prefix: np.ndarray
    """(I,) tokens of the image prefix."""
    mask: np.ndarray
    """(R,) mask tokens including delimiters, an upper bound."""
    query: np.ndarray
    """(3,) tokens between mask and caption, per style."""
    captions: np.ndarray
    """(R, 3) caption tokens including the end token."""
    branches: np.ndarray | int = 1
    """(R,) captions shown per region; each has its own branch."""

    @cached_property
    def first(self) -> np.ndarray:
        """(I + 1,) int64: index of each image's first region, and R."""
        return np.concatenate([[0], np.cumsum(self.regions, dtype=np.int64)])

    def branch(self, regions: np.ndarray, styles: np.ndarray) -> np.ndarray:
        """Return `(n,)` int64: tokens of the branches of regions, by region index and style."""
        of_each = self.mask[regions].astype(np.int64) + self.query[styles]
        return of_each * np.broadcast_to(self.branches, len(self.mask))[regions] + self.captions[regions, styles]

    def longest(self) -> np.ndarray:
        """Return `(I,)`: tokens of each image's prefix with its longest branch."""
        every = np.arange(len(self.mask))
        branch = np.max([self.branch(every, np.full_like(every, style)) for style in range(len(STYLES))], axis=0)
        return self.prefix + np.maximum.reduceat(branch, self.first[:-1])


class _Epoch(NamedTuple):
    order: np.ndarray
    """(U,) units in visiting order."""
    ends: np.ndarray
    """(U,) int64: regions of the epoch up to the end of each visit."""


class StepSampler:
    """Computes the visits of every step."""

    def __init__(self, lengths: Lengths, batch: BatchConfig, *, seed: int) -> None:
        """Take token counts, batch settings, and the seed of shuffles and draws."""
        self.lengths, self.seed = lengths, seed
        self._unit, self._amount = batch.step_size
        shown = lengths.regions.astype(np.int64)
        if batch.regions_per_image is not None:
            shown = np.minimum(shown, batch.regions_per_image)
        self._shown = shown
        parts = -(-shown // batch.regions_per_visit) if batch.regions_per_visit is not None else np.ones_like(shown)
        self._parts = parts
        self._image = np.repeat(np.arange(len(shown)), parts)
        part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        # Chunks as equal as possible: 17 regions in chunks of at most 16 become 8 and 9.
        self._low = part * shown[self._image] // parts[self._image]
        self._high = (part + 1) * shown[self._image] // parts[self._image]
        self.num_visits = len(self._image)
        """Visits per epoch."""
        self.num_regions = int(shown.sum())
        """Regions shown per epoch."""
        self._starts = [0]
        """Starts of the steps known so far, as positions in the stream of regions; used with `tokens_per_step` only."""
        self._epochs_cut, self._used = 0, 0
        self._epoch = lru_cache(maxsize=2)(self._ordered)

    def num_steps(self, epochs: float) -> int:
        """Return the number of optimizer steps for `epochs` passes over the images, at least one."""
        if self._unit == "tokens":
            target = max(1, round(epochs * self.num_regions))
            while self._epochs_cut * self.num_regions < target:
                self._cut_next_epoch()
            return int(np.searchsorted(self._starts, target, side="left"))
        whole = self.num_visits if self._unit == "images" else self.num_regions
        return max(1, math.ceil(round(epochs * whole, 6) / self._amount))

    def visits(self, step: int) -> list[Visit]:
        """Return the visits of a step, for all workers, in stream order."""
        start, stop = self._start(step), self._start(step + 1)
        visits = []
        for epoch in range(start // self.num_regions, (stop - 1) // self.num_regions + 1):
            before = epoch * self.num_regions
            low, high = max(start - before, 0), min(stop - before, self.num_regions)
            order, ends = self._epoch(epoch)
            for place in range(int(np.searchsorted(ends, low, side="right")), self.num_visits):
                unit = int(order[place])
                begins = int(ends[place]) - int(self._high[unit] - self._low[unit])
                if begins >= high:
                    break
                shown = self._regions_of(unit, epoch)[max(low - begins, 0) : high - begins]
                visits.append(Visit(image=int(self._image[unit]), epoch=epoch, regions=tuple(shown)))
        return visits

    def styles(self, visit: Visit) -> np.ndarray:
        """Return `(n,)` style indices: the query style of each region of a visit."""
        keys = np.full(len(visit.regions), self.lengths.keys[visit.image])
        return draw_styles(self.seed, visit.epoch, keys, np.array(visit.regions))

    def branch_tokens(self, visit: Visit) -> np.ndarray:
        """Return `(n,)` int64: tokens of each branch of a visit."""
        return self.lengths.branch(self.lengths.first[visit.image] + np.array(visit.regions), self.styles(visit))

    def _start(self, step: int) -> int:
        """Return the stream position of a step's first region."""
        if self._unit == "regions":
            return step * self._amount
        if self._unit == "images":
            epoch, place = divmod(step * self._amount, self.num_visits)
            return epoch * self.num_regions + (int(self._epoch(epoch).ends[place - 1]) if place else 0)
        while len(self._starts) <= step:
            self._cut_next_epoch()
        return self._starts[step]

    def _ordered(self, epoch: int) -> _Epoch:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_visits)
        return _Epoch(order, np.cumsum((self._high - self._low)[order]))

    def _regions_of(self, unit: int, epoch: int) -> list[int]:
        """Return the indices of a unit's regions in its image's list."""
        image = int(self._image[unit])
        num_regions = int(self.lengths.regions[image])
        if self._parts[image] == 1 and self._shown[image] == num_regions:
            return list(range(num_regions))
        shuffled = choose_regions(num_regions, seed=self.seed, epoch=epoch, key=int(self.lengths.keys[image]))
        return sorted(shuffled[int(self._low[unit]) : int(self._high[unit])].tolist())

    def _cut_next_epoch(self) -> None:
        """Find the starts of `tokens_per_step` steps in the next epoch, carrying over the open step's tokens."""
        epoch, lengths = self._epochs_cut, self.lengths
        order, ends = self._epoch(epoch)
        counts = self._high[order] - self._low[order]
        begins = ends - counts
        image = self._image[order]
        regions, places = self._stream_of(epoch, order)
        styles = draw_styles(self.seed, epoch, np.repeat(lengths.keys[image], counts), places)
        prefix = lengths.prefix[image].astype(np.int64)
        tokens = lengths.branch(regions, styles)
        tokens[begins] += prefix
        upto = np.concatenate([[0], np.cumsum(tokens)])  # tokens of the epoch before each region
        before, start = epoch * self.num_regions, 0
        while True:
            visit = int(np.searchsorted(ends, start, side="right"))
            again = int(prefix[visit]) if start > begins[visit] else 0  # the step begins within a visit
            room = self._amount - self._used - again
            stop = int(np.searchsorted(upto, upto[start] + room, side="right")) - 1
            if stop >= self.num_regions:
                self._used += int(upto[-1] - upto[start]) + again
                break
            stop = max(stop, start)
            cut = int(np.searchsorted(ends, stop, side="right"))
            begin = max(int(begins[cut]), start)
            if begin < stop and (begin > start or self._used):
                taken = int(upto[stop] - upto[begin] - (prefix[cut] if begin == begins[cut] else 0))
                if taken < prefix[cut]:
                    stop = begin
            if stop == start and not self._used:
                stop = start + 1  # longer than the budget: a step with only this region
            self._starts.append(before + stop)
            self._used, start = 0, stop
            if start == self.num_regions:
                break
        self._epochs_cut += 1

    def _stream_of(self, epoch: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the regions of an epoch in visiting order: global index, and index in the image's list."""
        lengths = self.lengths
        image, low = self._image[order], self._low[order]
        counts = self._high[order] - low
        within = np.arange(self.num_regions) - np.repeat(np.cumsum(counts) - counts, counts)
        first = np.repeat(lengths.first[image], counts)
        if self.num_visits == len(lengths.regions) and self.num_regions == int(lengths.first[-1]):
            return first + within, within
        owner = np.repeat(np.arange(len(lengths.regions)), lengths.regions)
        places = np.arange(len(owner)) - lengths.first[owner]
        draws = _draws(self.seed, epoch, "regions", lengths.keys[owner], places)
        shuffled = np.lexsort((draws, owner))
        chosen = places[shuffled[first + np.repeat(low, counts) + within]]
        chosen = chosen[np.lexsort((chosen, np.repeat(np.arange(len(order)), counts)))]
        return first + chosen, chosen


def choose_regions(num_regions: int, *, seed: int, epoch: int, key: int) -> np.ndarray:
    """Return `(n,)` indices of an image's regions in the order an epoch takes them; `key` is the image id's hash."""
    draws = _draws(seed, epoch, "regions", np.full(num_regions, key, np.uint64), np.arange(num_regions))
    return np.argsort(draws, kind="stable")


def draw_styles(seed: int, epoch: int, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Draw `(n,)` style indices for an epoch from the image keys and region indices."""
    share = (_draws(seed, epoch, "styles", keys, places) >> np.uint64(11)) * 2.0**-53
    borders = np.cumsum(STYLE_WEIGHTS) / sum(STYLE_WEIGHTS)
    return np.searchsorted(borders[:-1], share, side="right")


def _draws(seed: int, epoch: int, purpose: str, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return `(n,)` uniformly distributed uint64, each a function of its arguments only.

    Source of the mixing: splitmix64, Steele, Lea and Flood, Fast splittable pseudorandom number generators (2014).
    """
    start = np.random.SeedSequence([seed, epoch, *purpose.encode()]).generate_state(1, np.uint64)
    mixed = _mixed(keys.astype(np.uint64) ^ start)
    return _mixed(mixed + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
