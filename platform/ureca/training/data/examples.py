"""Training examples from rows of the region table: queries, captions, preference pairs."""

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
    """Return the caption of a region for a query style: brief, detailed or unique."""
    captions = {"brief": region.short_caption, "detailed": region.long_caption, "unique": region.caption}
    caption = captions[style]
    if not caption:
        raise InputError(
            f"image {image_id!r}, region {region.region_id!r}: labeled, but without a caption for style {style!r}. "
            "Label the image again with jobs/label_corpus.py."
        )
    return caption


def region_examples(
    row: ImageRow, visit: Visit, styles: Sequence[int] | np.ndarray, processor: CaptionerProcessor, *, cue: Cue
) -> tuple[RegionExample, ...]:
    """Build one example per region of a visit: the query in the region's style (an index into `STYLES`) and its
    caption.

    Raises:
        InputError: a region has no caption for its style.
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
"""Query style of preference pairs: the chosen caption must fit its region only."""

JUDGED_FALSE = "judged_false"


def rejected_captions(regions: Sequence[RegionRow]) -> dict[int, list[str]]:
    """Map the index of each region with pairs to its rejected captions, most similar distractor first."""
    return rejected_of(
        [region.caption for region in regions],
        [region.flags for region in regions],
        [[distractor.index for distractor in region.distractors] for region in regions],
    )


def rejected_of(
    captions: Sequence[str | None], flags: Sequence[Sequence[str]], distractors: Sequence[Sequence[int]]
) -> dict[int, list[str]]:
    """Compute `rejected_captions` of an image from the columns of its regions."""
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
    """Draw the preference pairs of a visit: each region with its own (chosen) caption, then with rejected ones.

    The visit's region indices count only the regions that have pairs.
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
