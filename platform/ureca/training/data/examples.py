"""From a row of the region table to what the model learns from it."""

import random
from collections.abc import Sequence

import numpy as np

from ureca.corpus.schema import ImageRow, RegionRow
from ureca.errors import InputError
from ureca.model.packing import RegionExample
from ureca.model.processor import CaptionerProcessor
from ureca.training.config import Cue
from ureca.training.data.sampler import STYLES, Visit


def caption_of(image_id: str, region: RegionRow, style: str) -> str:
    """The caption of a region that answers a query style: brief, detailed or unique."""
    captions = {"brief": region.short_caption, "detailed": region.long_caption, "unique": region.caption}
    caption = captions[style]
    if not caption:
        raise InputError(
            f"image {image_id!r}, region {region.region_id!r}: labeled, but has no caption for the style "
            f"{style!r}. Label the image again with jobs/label_corpus.py."
        )
    return caption


def region_examples(
    row: ImageRow, visit: Visit, styles: Sequence[int] | np.ndarray, processor: CaptionerProcessor, *, cue: Cue
) -> tuple[RegionExample, ...]:
    """The regions of a visit, each asked for in its style (a place in `STYLES`), with the caption that answers.

    Raises:
        InputError: a region has no such caption.
    """
    examples = []
    for place, number in zip(visit.regions, styles, strict=True):
        region, style = row.regions[place], STYLES[number]
        examples.append(
            RegionExample(
                segmentation=region.segmentation if cue == "mask" else None,
                query=processor.query(style, cue=cue, box=region.bbox, size=row.size),
                caption=caption_of(row.image_id, region, style),
            )
        )
    return tuple(examples)


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
