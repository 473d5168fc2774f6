"""Preference pairs out of the region table: a region's own caption against those of its distractors.

    regions[i].caption                                    chosen
    regions[i].distractors[].index -> regions[j].caption  rejected, for region i

A distractor's caption that reads like the region's own is no pair, nor is one that came before in the region's list; a
region whose own caption was judged false has none to prefer. Which regions of an image are shown, and which of a
region's distractors, is drawn from (seed, epoch, image, region).
"""

import random
from collections.abc import Sequence

from ureca.corpus.schema import ImageRow, RegionRow
from ureca.model import CaptionerProcessor, RegionExample
from ureca.training.index import Visit

__all__ = ["STYLE", "make_pairs", "rejected_captions", "rejected_of"]

STYLE = "unique"
"""The query: pairs are of the caption that shall fit its region alone."""

JUDGED_FALSE = "judged_false"


def rejected_captions(regions: Sequence[RegionRow]) -> dict[int, list[str]]:
    """Places of the regions that have a pair -> captions to reject for them, of the most alike distractor first."""
    return rejected_of(
        [region.caption for region in regions],
        [region.flags for region in regions],
        [[distractor.index for distractor in region.distractors] for region in regions],
    )


def rejected_of(
    captions: Sequence[str | None], flags: Sequence[Sequence[str]], distractors: Sequence[Sequence[int]]
) -> dict[int, list[str]]:
    """`rejected_captions` of an image's regions by their columns."""
    found = {}
    for place, own in enumerate(captions):
        if not own or JUDGED_FALSE in flags[place]:
            continue
        others = (captions[index] for index in distractors[place])
        rejected = dict.fromkeys(caption for caption in others if caption and caption != own)
        if rejected:
            found[place] = list(rejected)
    return found


def make_pairs(
    row: ImageRow, visit: Visit, processor: CaptionerProcessor, *, rejected_per_region: int, seed: int
) -> tuple[tuple[RegionExample, ...], tuple[tuple[int, int], ...]]:
    """The pairs that a visit draws: each region with its own caption, then with rejected ones; (chosen, rejected).

    The visit's regions are places among those that have a pair.
    """
    rejected = rejected_captions(row.regions)
    paired = list(rejected)
    query = processor.query(STYLE)
    branches: list[RegionExample] = []
    pairs: list[tuple[int, int]] = []
    for place in (paired[index] for index in visit.regions):
        region = row.regions[place]
        draw = random.Random(f"pairs/{seed}/{visit.epoch}/{row.image_id}/{region.region_id}")
        against = draw.sample(rejected[place], min(rejected_per_region, len(rejected[place])))
        own = len(branches)
        pairs += [(own, own + 1 + number) for number in range(len(against))]
        captions = [region.caption or "", *against]
        branches += [RegionExample(region.segmentation, query, caption) for caption in captions]
    return tuple(branches), tuple(pairs)
