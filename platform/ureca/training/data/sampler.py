"""Which regions of which images a step trains on, from seed and step alone, for any number of workers.

    visit       an image's turn in an epoch: all its regions, or a portion of them where `regions_per_visit` is set
    stream      [ visits of epoch 0, shuffled by its seed | visits of epoch 1, shuffled by its seed | ... ]
    step k      the next piece of the stream: `images_per_step` visits, `regions_per_step` regions, or as many regions
                as `tokens_per_step` has room for; where a piece ends within a visit, the next begins there

So the step number alone says where to go on after an interruption, every region comes once per epoch, and a step may
hold the end of one epoch and the start of the next. Which of a region's three captions is asked for, and which regions
are shown where not all are (`regions_per_image`), is drawn from a hash of (seed, epoch, image id, region's place).

Tokens are counted as they stand in the packed sequence: an image's prefix once for each step that shows any of it, and
for each region its mask tokens (at most as many as its box touches tiles), query and caption. With `tokens_per_step`
a step ends within an image only where what it takes of it outweighs the prefix, which is then computed twice.
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
"""How often each is asked for: `unique` is what a captioner is for, and what it is scored by."""


@dataclass(frozen=True)
class Visit:
    """An image's turn in a step: which of its regions are shown, and the epoch, which seeds the draws."""

    image: int
    """Its number in the order of image ids."""
    epoch: int
    regions: tuple[int, ...]
    """Places in the image's list, ascending."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long everything is, in tokens. I images, R regions, those of one image after those of the one before."""

    keys: np.ndarray
    """(I,) uint64: a hash of each image's id."""
    regions: np.ndarray
    """(I,) how many regions each image has to learn from, 1 or more."""
    prefix: np.ndarray
    """(I,) tokens of the image's prefix."""
    mask: np.ndarray
    """(R,) mask tokens, delimiters included: at most so many."""
    query: np.ndarray
    """(3,) tokens between mask and caption, for each of `STYLES`."""
    captions: np.ndarray
    """(R, 3) tokens of the captions, the end marker included."""
    branches: np.ndarray | int = 1
    """(R,) with how many captions a region is shown: each has a branch of its own."""

    @cached_property
    def first(self) -> np.ndarray:
        """(I + 1,) int64: the number of each image's first region, and R."""
        return np.concatenate([[0], np.cumsum(self.regions, dtype=np.int64)])

    def branch(self, regions: np.ndarray, styles: np.ndarray) -> np.ndarray:
        """(n,) int64 tokens of the branches of regions, given by their numbers."""
        of_each = self.mask[regions].astype(np.int64) + self.query[styles]
        return of_each * np.broadcast_to(self.branches, len(self.mask))[regions] + self.captions[regions, styles]

    def longest(self) -> np.ndarray:
        """(I,) tokens of each image's prefix with the longest of its branches."""
        every = np.arange(len(self.mask))
        branch = np.max([self.branch(every, np.full_like(every, style)) for style in range(len(STYLES))], axis=0)
        return self.prefix + np.maximum.reduceat(branch, self.first[:-1])


class _Epoch(NamedTuple):
    order: np.ndarray
    """(U,) units in the order of their visits."""
    ends: np.ndarray
    """(U,) int64: regions of the epoch up to the end of each visit."""


class StepSampler:
    """The visits of every step."""

    def __init__(self, lengths: Lengths, batch: BatchConfig, *, seed: int) -> None:
        """`seed`: of the shuffles and draws."""
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
        # Portions as equal as they can be: 17 regions at most 16 at a time are 8 and 9.
        self._low = part * shown[self._image] // parts[self._image]
        self._high = (part + 1) * shown[self._image] // parts[self._image]
        self.num_visits = len(self._image)
        """Of an epoch."""
        self.num_regions = int(shown.sum())
        """Shown in an epoch."""
        self._starts = [0]
        """Of the steps found so far, as regions of the stream before them; only with `tokens_per_step`."""
        self._epochs_cut, self._used = 0, 0
        self._epoch = lru_cache(maxsize=2)(self._ordered)

    def num_steps(self, epochs: float) -> int:
        """Optimizer steps of so many passes over the images, at least one."""
        if self._unit == "tokens":
            target = max(1, round(epochs * self.num_regions))
            while self._epochs_cut * self.num_regions < target:
                self._cut_next_epoch()
            return int(np.searchsorted(self._starts, target, side="left"))
        whole = self.num_visits if self._unit == "images" else self.num_regions
        return max(1, math.ceil(round(epochs * whole, 6) / self._amount))

    def visits(self, step: int) -> list[Visit]:
        """What a step shows, all workers together, in the order of the stream."""
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
        """(n,) places in `STYLES`: what each region of a visit is asked for."""
        keys = np.full(len(visit.regions), self.lengths.keys[visit.image])
        return draw_styles(self.seed, visit.epoch, keys, np.array(visit.regions))

    def branch_tokens(self, visit: Visit) -> np.ndarray:
        """(n,) int64 tokens of the branches of a visit."""
        return self.lengths.branch(self.lengths.first[visit.image] + np.array(visit.regions), self.styles(visit))

    def _start(self, step: int) -> int:
        """How many regions of the stream come before a step."""
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
        """Places of the regions of a unit in its image's list."""
        image = int(self._image[unit])
        num_regions = int(self.lengths.regions[image])
        if self._parts[image] == 1 and self._shown[image] == num_regions:
            return list(range(num_regions))
        shuffled = choose_regions(num_regions, seed=self.seed, epoch=epoch, key=int(self.lengths.keys[image]))
        return sorted(shuffled[int(self._low[unit]) : int(self._high[unit])].tolist())

    def _cut_next_epoch(self) -> None:
        """Find where steps of `tokens_per_step` start in the next epoch, the open step's tokens carried over."""
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
        upto = np.concatenate([[0], np.cumsum(tokens)])  # tokens of the epoch before each of its regions
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
                stop = start + 1  # longer than a step's budget: alone
            self._starts.append(before + stop)
            self._used, start = 0, stop
            if start == self.num_regions:
                break
        self._epochs_cut += 1

    def _stream_of(self, epoch: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every region of an epoch in the order of its visits: its number, and its place in its image's list."""
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
    """(n,) places of an image's regions in the order in which an epoch takes them; `key`: a hash of the image's id."""
    draws = _draws(seed, epoch, "regions", np.full(num_regions, key, np.uint64), np.arange(num_regions))
    return np.argsort(draws, kind="stable")


def draw_styles(seed: int, epoch: int, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) places in `STYLES`: what regions are asked for in an epoch, by their image's key and place in its list."""
    share = (_draws(seed, epoch, "styles", keys, places) >> np.uint64(11)) * 2.0**-53
    borders = np.cumsum(STYLE_WEIGHTS) / sum(STYLE_WEIGHTS)
    return np.searchsorted(borders[:-1], share, side="right")


def _draws(seed: int, epoch: int, purpose: str, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) uint64, evenly spread, each a function of its arguments alone.

    Source of the mixing: splitmix64, Steele, Lea and Flood, Fast splittable pseudorandom number generators (2014).
    """
    start = np.random.SeedSequence([seed, epoch, *purpose.encode()]).generate_state(1, np.uint64)
    mixed = _mixed(keys.astype(np.uint64) ^ start)
    return _mixed(mixed + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
