"""How a step's visits are cut into forward passes and shared out among workers.

    visits of a step       A A A A A A A | B B | C C C C | ...         letters: images, one for each region
    parts, at most         A A A A | A A A | B B | C C C C             `tokens_per_device` each, the prefix in each
    worker 0, its passes   [ A A A A ] [ B B ]
    worker 1               [ A A A ]   [ C C C C ]

All workers have equally many passes, for they meet in every pass: the collectives of ZeRO 3 would wait for ever for
one that has fewer. Each worker works this out by itself, from the step's visits and their lengths alone.

Workers get like numbers of tokens, and, where that costs nothing, neighbors in the order of image ids: an image then
mostly comes back to the worker that has its image tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ureca.training.data.sampler import StepSampler, Visit

_SLACK = 1.1
"""How much longer the fullest worker may take for the sake of image tokens that are there already."""


@dataclass(frozen=True)
class ImageSlice:
    """A visit, or some of its regions, for one forward pass."""

    visit: Visit
    prefix: int
    """Tokens of the image's prefix."""
    branches: tuple[int, ...]
    """Tokens of each region's branch."""

    @classmethod
    def of(cls, visit: Visit, index: StepSampler) -> "ImageSlice":
        """A whole visit."""
        branches = tuple(index.branch_tokens(visit).tolist())
        return cls(visit, int(index.lengths.prefix[visit.image]), branches)

    @property
    def tokens(self) -> int:
        """Prefix and branches."""
        return self.prefix + sum(self.branches)

    def slice(self, start: int, stop: int) -> "ImageSlice":
        """The part with its regions from `start` to before `stop`."""
        visit = replace(self.visit, regions=self.visit.regions[start:stop])
        return ImageSlice(visit, self.prefix, self.branches[start:stop])


Microbatches = list[list[ImageSlice]]
"""The parts of each forward pass of a worker; one without parts is idle."""


def partition(visits: Sequence[ImageSlice], *, num_workers: int, tokens_per_device: int) -> list[Microbatches]:
    """The passes of each worker, equally many; no pass holds more than `tokens_per_device`, but for a lone branch."""
    parts = [part for visit in visits for part in _cut(visit, tokens_per_device)]
    parts = _for_everybody(parts, num_workers)
    parts.sort(key=lambda part: (part.visit.image, part.visit.epoch, part.visit.regions))
    neighbors, even = _neighbors(parts, num_workers), _even(parts, num_workers)
    shares = neighbors if _fullest(neighbors) <= _SLACK * _fullest(even) else even
    needed = max(len(_first_fit(share, tokens_per_device)) for share in shares)
    return [_into_microbatches(share, needed, tokens_per_device) for share in shares]


def load_balance(workers: Sequence[Microbatches]) -> float:
    """Share of the workers' tokens' time that they compute, the rest being waits for the fullest of each pass."""
    tokens = [[sum(part.tokens for part in one) for one in microbatches] for microbatches in workers]
    waited_for = sum(max(of_pass) for of_pass in zip(*tokens, strict=True))
    return sum(map(sum, tokens)) / (waited_for * len(workers))


def _cut(part: ImageSlice, budget: int) -> list[ImageSlice]:
    """A visit in parts that fit the budget, each with as many regions as it has room for."""
    pieces, start, used = [], 0, part.prefix
    for place, tokens in enumerate(part.branches):
        if place > start and used + tokens > budget:
            pieces.append(part.slice(start, place))
            start, used = place, part.prefix
        used += tokens
    return [*pieces, part.slice(start, len(part.branches))]


def _for_everybody(parts: list[ImageSlice], num_workers: int) -> list[ImageSlice]:
    """As many parts as workers, where that takes halving images whose branches outweigh the prefix done twice."""
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
    """Contiguous shares, each part where its middle lies in the tokens of all."""
    shares: list[list[ImageSlice]] = [[] for _ in range(num_workers)]
    total, before = sum(part.tokens for part in parts), 0
    for part in parts:
        middle = 2 * before + part.tokens
        shares[middle * num_workers // (2 * total)].append(part)
        before += part.tokens
    return shares


def _even(parts: Sequence[ImageSlice], num_bins: int) -> list[list[ImageSlice]]:
    """Longest first, each to the bin with the fewest tokens."""
    bins: list[list[ImageSlice]] = [[] for _ in range(num_bins)]
    filled = [0] * num_bins
    for part in sorted(parts, key=lambda part: -part.tokens):
        place = min(range(num_bins), key=filled.__getitem__)
        bins[place].append(part)
        filled[place] += part.tokens
    return bins


def _fullest(shares: Sequence[Sequence[ImageSlice]]) -> int:
    return max(sum(part.tokens for part in share) for share in shares)


def _first_fit(parts: Sequence[ImageSlice], budget: int) -> Microbatches:
    """As few passes as longest-first finds."""
    microbatches: Microbatches = []
    left: list[int] = []
    for part in sorted(parts, key=lambda part: -part.tokens):
        place = next((p for p, room in enumerate(left) if room >= part.tokens), len(microbatches))
        if place == len(microbatches):
            microbatches.append([])
            left.append(budget)
        microbatches[place].append(part)
        left[place] -= part.tokens
    return microbatches


def _into_microbatches(parts: Sequence[ImageSlice], num_microbatches: int, budget: int) -> Microbatches:
    """So many passes, the fullest first, so that those of the workers that meet are alike."""
    even = _even(parts, num_microbatches)
    if any(sum(part.tokens for part in one) > max(budget, *(part.tokens for part in one)) for one in even if one):
        even = _first_fit(parts, budget)
        even += [[] for _ in range(num_microbatches - len(even))]
    return sorted(even, key=lambda one: -sum(part.tokens for part in one))
