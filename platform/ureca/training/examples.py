"""From a row of the region table to what the model learns from it."""

from collections.abc import Sequence

import numpy as np

from ureca.corpus.schema import ImageRow, RegionRow
from ureca.errors import InputError
from ureca.model import CaptionerProcessor, RegionExample
from ureca.training.config import Cue
from ureca.training.index import STYLES, Visit

__all__ = ["caption_of", "region_examples"]


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
