"""From the region table to packed batches.

Each worker holds the table in memory (Arrow, not decoded). Keep images by reference (`image.path`) where a
corpus has more bytes than a worker has memory.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc
from torch import Tensor

from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.split import split_heldout
from ureca.corpus.table import load_image, read_regions
from ureca.errors import InputError
from ureca.model import CaptionerProcessor, Example, RegionExample
from ureca.training.config import Cue
from ureca.training.index import Visit, choose_regions, choose_style
from ureca.training.pairs import rejected_captions

__all__ = ["LabeledImages", "caption_of", "make_example"]


class LabeledImages:
    """The images of a region table that have captions to learn from, numbered in the order of their ids.

    Held-out images are not among them: `split_heldout` over all ids of the table says which those are.
    """

    def __init__(self, path: str, *, heldout: float = 0.0, heldout_seed: int = 0, paired: bool = False) -> None:
        """Read the table at `path`, a parquet file or a folder of them.

        Args:
            paired: only images of which a region has a distractor of another caption.

        Raises:
            InputError: there is no such table, or no image of it is labeled, or paired.
        """
        self._table = read_regions(path)
        statuses = self._table["status"].to_pylist()
        lengths = pc.list_value_length(self._table["regions"]).to_pylist()
        ids = self._table["image_id"].to_pylist()
        left_out = set(split_heldout(ids, heldout, heldout_seed).heldout) if heldout else set()
        learnable = [
            (image_id, position)
            for position, (image_id, status, length) in enumerate(zip(ids, statuses, lengths, strict=True))
            if status == "labeled" and length and image_id not in left_out
        ]
        if not learnable:
            raise InputError(
                f"{path}: none of its {len(ids)} images is labeled and not held out, so there is nothing to "
                "train on. Write captions into it with jobs/label_corpus.py, or hold out a smaller share."
            )
        if paired:
            labeled, regions = len(learnable), self._table["regions"]
            learnable = [each for each in learnable if _has_pair(regions[each[1]].as_py())]
            if not learnable:
                raise InputError(
                    f"{path}: none of its {labeled} labeled images has a region with a distractor of another caption, "
                    "so there are no pairs to learn from. Label with jobs/label_corpus.py and a lower "
                    "--distractors.min_similarity, or let stage 2 be the last."
                )
        self._positions = [position for _, position in sorted(learnable)]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, number: int) -> ImageRow:
        return ImageRow.from_record(self._table.slice(self._positions[number], 1).to_pylist()[0])


def _has_pair(records: list[dict[str, Any]]) -> bool:
    return bool(rejected_captions([RegionRow.from_record(record) for record in records]))


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


def make_example(
    row: ImageRow,
    visit: Visit,
    processor: CaptionerProcessor,
    *,
    cue: Cue,
    regions_per_image: int,
    seed: int,
    image_of: Callable[[ImageRow], np.ndarray | Tensor] = load_image,
) -> Example:
    """One image with the regions, styles and captions that its visit draws; `image_of` reads it.

    Raises:
        ImageError: the image is missing, truncated, or not of the size that the table says.
        InputError: a region has no caption.
    """
    chosen = choose_regions(
        [region.region_id for region in row.regions],
        regions_per_image,
        seed=seed,
        epoch=visit.epoch,
        image_id=row.image_id,
    )
    examples = []
    for region in (row.regions[index] for index in chosen):
        style = choose_style(seed=seed, epoch=visit.epoch, image_id=row.image_id, region_id=region.region_id)
        examples.append(
            RegionExample(
                segmentation=region.segmentation if cue == "mask" else None,
                query=processor.query(style, cue=cue, box=region.bbox, size=row.size),
                caption=caption_of(row.image_id, region, style),
            )
        )
    return Example(image=image_of(row), regions=tuple(examples))
