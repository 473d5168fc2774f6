"""Preference pairs out of the region table: a region's own caption against those of its distractors.

    regions[i].caption                                    chosen
    regions[i].distractors[].index -> regions[j].caption  rejected, for region i

A distractor's caption that reads like the region's own is no pair, nor is one that came before in the region's list; a
region whose own caption was judged false has none to prefer. Which regions of an image are shown, and which of a
region's distractors, is drawn from (seed, epoch, image, region).
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.table import load_image
from ureca.model import CaptionerProcessor, Example, RegionExample
from ureca.training.index import Visit, choose_regions

__all__ = ["make_pairs", "rejected_captions"]

STYLE = "unique"
"""The query: pairs are of the caption that shall fit its region alone."""

JUDGED_FALSE = "judged_false"


def rejected_captions(regions: Sequence[RegionRow]) -> dict[int, list[str]]:
    """Places of the regions that have a pair -> captions to reject for them, of the most alike distractor first."""
    found = {}
    for place, region in enumerate(regions):
        if not region.caption or JUDGED_FALSE in region.flags:
            continue
        others = (regions[distractor.index].caption for distractor in region.distractors)
        captions = dict.fromkeys(caption for caption in others if caption and caption != region.caption)
        if captions:
            found[place] = list(captions)
    return found


def make_pairs(
    row: ImageRow,
    visit: Visit,
    processor: CaptionerProcessor,
    *,
    regions_per_image: int,
    rejected_per_region: int,
    seed: int,
    image_of: Callable[[ImageRow], np.ndarray | Tensor] = load_image,
) -> Example:
    """One image with the pairs that its visit draws: each region with its own caption, then with rejected ones.

    Raises:
        ImageError: the image is missing, truncated, or not of the size that the table says.
    """
    rejected = rejected_captions(row.regions)
    places = list(rejected)
    chosen = choose_regions(
        [row.regions[place].region_id for place in places],
        regions_per_image,
        seed=seed,
        epoch=visit.epoch,
        image_id=row.image_id,
    )
    query = processor.query(STYLE)
    branches: list[RegionExample] = []
    pairs: list[tuple[int, int]] = []
    for place in (places[index] for index in chosen):
        region = row.regions[place]
        draw = random.Random(f"pairs/{seed}/{visit.epoch}/{row.image_id}/{region.region_id}")
        against = draw.sample(rejected[place], min(rejected_per_region, len(rejected[place])))
        own = len(branches)
        pairs += [(own, own + 1 + number) for number in range(len(against))]
        captions = [region.caption or "", *against]
        branches += [RegionExample(region.segmentation, query, caption) for caption in captions]
    return Example(image=image_of(row), regions=tuple(branches), pairs=tuple(pairs))
