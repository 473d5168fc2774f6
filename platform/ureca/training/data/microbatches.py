"""Partition a step's visits into microbatches and workers.

    visits of a step       A A A A A A A | B B | C C C C | ...         one letter per region, named after its image
    slices, at most        A A A A | A A A | B B | C C C C             `tokens_per_device` each, prefix included
    worker 0               [ A A A A ] [ B B ]
    worker 1               [ A A A ]   [ C C C C ]

All workers have the same number of microbatches because they meet in every one: ZeRO 3's collectives would wait forever
for a worker with fewer. Each worker computes the partition itself, from the step's visits and their lengths only.

Workers get similar numbers of tokens and, where that costs nothing, neighbors in the order of image ids. An image then
mostly returns to the worker that has its features cached.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ureca.model.bin_packing import first_fit_decreasing
from ureca.training.data.sampler import StepSampler, Visit

_SLACK = 1.1
"""Slowdown of the fullest worker that is accepted in exchange for cached image features."""


@dataclass(frozen=True)
class ImageSlice:
    """Some or all regions of a visit, in one microbatch."""

    visit: Visit
    prefix: int
    """Tokens of the image prefix."""
    branches: tuple[int, ...]
    """Tokens of each region's branch."""

    @classmethod
    def of(cls, visit: Visit, index: StepSampler) -> "ImageSlice":
        """Return the slice with all regions of a visit."""
        branches = tuple(index.branch_tokens(visit).tolist())
        return cls(visit, int(index.lengths.prefix[visit.image]), branches)

    @property
    def tokens(self) -> int:
        """Tokens of prefix and branches."""
        return self.prefix + sum(self.branches)

    def slice(self, start: int, stop: int) -> "ImageSlice":
        """Return the slice with regions `start` to `stop` (exclusive)."""
        visit = replace(self.visit, regions=self.visit.regions[start:stop])
        return ImageSlice(visit, self.prefix, self.branches[start:stop])


Microbatches = list[list[ImageSlice]]
"""Slices of each microbatch of a worker; a microbatch without slices is idle."""


def partition(visits: Sequence[ImageSlice], *, num_workers: int, tokens_per_device: int) -> list[Microbatches]:
    """Partition visits into the same number of microbatches per worker.

    No microbatch exceeds `tokens_per_device`, except for a single branch that is longer.
    """
    parts = [part for visit in visits for part in _cut(visit, tokens_per_device)]
    parts = _for_everybody(parts, num_workers)
    parts.sort(key=lambda part: (part.visit.image, part.visit.epoch, part.visit.regions))
    neighbors, even = _neighbors(parts, num_workers), _even(parts, num_workers)
    shares = neighbors if _fullest(neighbors) <= _SLACK * _fullest(even) else even
    needed = max(len(first_fit_decreasing([part.tokens for part in share], tokens_per_device)) for share in shares)
    return [_into_microbatches(share, needed, tokens_per_device) for share in shares]


def load_balance(workers: Sequence[Microbatches]) -> float:
    """Return the share of worker time spent computing; the rest is waiting for the fullest worker of each
    microbatch."""
    tokens = [[sum(part.tokens for part in one) for one in microbatches] for microbatches in workers]
    waited_for = sum(max(of_pass) for of_pass in zip(*tokens, strict=True))
    return sum(map(sum, tokens)) / (waited_for * len(workers))


def _cut(part: ImageSlice, budget: int) -> list[ImageSlice]:
    """Cut a visit into slices that fit the budget, each with as many regions as possible."""
    pieces, start, used = [], 0, part.prefix
    for place, tokens in enumerate(part.branches):
        if place > start and used + tokens > budget:
            pieces.append(part.slice(start, place))
            start, used = place, part.prefix
        used += tokens
    return [*pieces, part.slice(start, len(part.branches))]


def _for_everybody(parts: list[ImageSlice], num_workers: int) -> list[ImageSlice]:
    """Halve images until every worker has a slice, if their branches outweigh the repeated prefix."""
    parts = list(parts)
    while len(parts) < num_workers:
        largest = max(parts, key=lambda part: sum(part.branches) if len(part.branches) > 1 else 0)
        if len(largest.branches) < 2 or sum(largest.branches) < 2 * largest.prefix:
            break
        parts.remove(largest)
        middle = _middle(largest.branches)
        parts += [largest.slice(0, middle), largest.slice(middle, len(largest.branches))]
    return parts


def _middle(lengths: Sequence[int]) -> int:
    total, upto = sum(lengths), 0
    for place, length in enumerate(lengths[:-1], start=1):
        upto += length
        if 2 * upto >= total:
            return place
    return len(lengths) - 1


def _neighbors(parts: Sequence[ImageSlice], num_workers: int) -> list[list[ImageSlice]]:
    """Partition into contiguous shares by the position of each slice's middle among all tokens."""
    shares: list[list[ImageSlice]] = [[] for _ in range(num_workers)]
    total, before = sum(part.tokens for part in parts), 0
    for part in parts:
        middle = 2 * before + part.tokens
        shares[middle * num_workers // (2 * total)].append(part)
        before += part.tokens
    return shares


def _even(parts: Sequence[ImageSlice], num_bins: int) -> list[list[ImageSlice]]:
    """Assign slices, longest first, to the bin with the fewest tokens."""
    bins: list[list[ImageSlice]] = [[] for _ in range(num_bins)]
    filled = [0] * num_bins
    for part in sorted(parts, key=lambda part: -part.tokens):
        place = min(range(num_bins), key=filled.__getitem__)
        bins[place].append(part)
        filled[place] += part.tokens
    return bins


def _fullest(shares: Sequence[Sequence[ImageSlice]]) -> int:
    return max(sum(part.tokens for part in share) for share in shares)


def _into_microbatches(parts: Sequence[ImageSlice], num_microbatches: int, budget: int) -> Microbatches:
    """Distribute slices over `num_microbatches`, fullest first, so that workers meet in similar microbatches."""
    even = _even(parts, num_microbatches)
    if any(sum(part.tokens for part in one) > max(budget, *(part.tokens for part in one)) for one in even if one):
        bins = first_fit_decreasing([part.tokens for part in parts], budget)
        even = [[parts[index] for index in one] for one in bins]
        even += [[] for _ in range(num_microbatches - len(even))]
    return sorted(even, key=lambda one: -sum(part.tokens for part in one))
