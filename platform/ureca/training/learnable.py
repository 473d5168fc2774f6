"""The labeled images of a row group of a region table: whether they can be trained on, and how long each of them is.

Columns at a time: nothing here asks for a Python object of each region but the texts of its captions.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ureca.errors import ImageError, InputError, MaskSizeError
from ureca.model import CaptionerProcessor
from ureca.training.index import STYLES
from ureca.training.pairs import rejected_of

__all__ = ["CAPTION_COLUMNS", "Learnable", "Learned"]

CAPTION_COLUMNS = ("short_caption", "long_caption", "caption")
"""In the order of `STYLES`."""

_MOST = np.iinfo(np.uint16).max


class Learned(NamedTuple):
    """What is learned from the images of a row group: all their regions, or those that have a pair."""

    lengths: np.ndarray
    """Regions of each image."""
    captions: np.ndarray
    tiles: np.ndarray
    branches: np.ndarray


class Learnable:
    """The labeled images of a row group that have regions."""

    def __init__(self, path: str, batch: pa.Table) -> None:
        self._path = path
        lengths = pc.fill_null(pc.list_value_length(batch["regions"]), 0).to_numpy()
        is_labeled = pc.fill_null(pc.equal(batch["status"], "labeled"), False).to_numpy(zero_copy_only=False)
        self.rows = np.flatnonzero(is_labeled & (lengths > 0))
        """Their places in the row group."""
        kept = batch.take(pa.array(self.rows)).combine_chunks()
        self.ids: list[str] = kept["image_id"].to_pylist()
        self.lengths = lengths[self.rows]
        """Regions of each."""
        self.paths: list[str | None] = pc.struct_field(kept["image"], "path").to_pylist()
        heights, widths = (pc.fill_null(kept[name].cast(pa.int32()), 0).to_numpy() for name in ("height", "width"))
        self.sizes = np.stack([heights, widths], axis=1)
        """(height, width) of each."""
        regions = kept["regions"]
        self._regions = (regions.combine_chunks() if len(regions) else pa.array([], regions.type)).flatten()

    def __len__(self) -> int:
        return len(self.ids)

    def _named(self, region: int) -> str:
        """How an error names a region, given by its number among all of the row group."""
        image = int(np.searchsorted(np.cumsum(self.lengths), region, side="right"))
        return f"{self._path}: image {self.ids[image]!r}, region {self._field('region_id')[region].as_py()!r}"

    def _field(self, name: str) -> pa.Array:
        return pc.struct_field(self._regions, name)

    def check_images(self, num_with_bytes: int) -> None:
        """Raises ImageError if an image has neither a path nor bytes; `num_with_bytes` images of the row group have."""
        without_path = [image_id for image_id, path in zip(self.ids, self.paths, strict=True) if path is None]
        if len(without_path) > num_with_bytes:
            raise ImageError(
                f"{self._path}: {len(without_path)} images of a row group have no path, {without_path[0]!r} the first, "
                f"but only {num_with_bytes} bytes. Write the table again with one of them for each image."
            )

    def check_masks(self) -> None:
        sizes = pc.struct_field(self._field("segmentation"), "size")
        pairs = pc.fill_null(pc.list_value_length(sizes), 0).to_numpy()
        image = np.repeat(self.sizes, self.lengths, axis=0)
        if (pairs != 2).any():
            wrong, size = int(np.argmax(pairs != 2)), None
        else:
            found = pc.fill_null(sizes.flatten(), 0).to_numpy().reshape(-1, 2)
            differs = (found != image).any(axis=1)
            if not differs.any():
                return
            wrong = int(np.argmax(differs))
            size = found[wrong].tolist()
        raise MaskSizeError(
            f"{self._named(wrong)} has an RLE of size {size}, its image is {image[wrong].tolist()} (height, width). "
            "Encode the mask at the image's stored size; EXIF rotation of only one of them is a common cause."
        )

    def check_boxes(self) -> None:
        """Raises InputError if a region has no box of four numbers, or one that lies outside of its image."""
        boxes, sizes = self._field("bbox"), np.repeat(self.sizes, self.lengths, axis=0)
        wrong = np.flatnonzero(pc.fill_null(pc.list_value_length(boxes), 0).to_numpy() != 4)
        if not len(wrong):
            start, extent = np.split(pc.fill_null(boxes.flatten(), np.nan).to_numpy().reshape(-1, 4), 2, axis=1)
            inside = (start < sizes[:, ::-1]) & (start + extent > 0) & (extent > 0)
            wrong = np.flatnonzero(~inside.all(axis=1))
        if len(wrong):
            region = int(wrong[0])
            raise InputError(
                f"{self._named(region)} has the box {boxes[region].as_py()}, its image is {sizes[region].tolist()} "
                "(height, width). Write x, y, width, height in pixels, as ureca.regions.rle.rle_bbox has them."
            )

    def check_distractors(self) -> None:
        """Raises InputError if a region's distractor is none of its image's regions."""
        distractors = self._field("distractors")
        counts = pc.fill_null(pc.list_value_length(distractors), 0).to_numpy()
        indices = pc.fill_null(pc.struct_field(distractors.flatten(), "index"), -1).to_numpy()
        owner = np.repeat(np.arange(len(counts)), counts)
        num_regions = np.repeat(self.lengths, self.lengths)[owner]
        outside = np.flatnonzero((indices < 0) | (indices >= num_regions))
        if len(outside):
            first = outside[0]
            raise InputError(
                f"{self._named(int(owner[first]))} has the distractor {indices[first]}, but the {num_regions[first]} "
                f"regions of its image are counted from 0 to {num_regions[first] - 1}. Label the image again with "
                "jobs/label_corpus.py, or let stage 2 be the last."
            )

    def learned(self, processor: CaptionerProcessor, rejected_per_region: int | None) -> Learned:
        """Raises InputError where a caption is empty."""
        captions, tiles = self._caption_tokens(processor), self._touched_tiles(processor)
        if rejected_per_region is None:
            return Learned(self.lengths, captions, tiles, np.ones(len(tiles), np.uint8))
        kept, lengths, branches = [], [], []
        texts, flags = self._field(CAPTION_COLUMNS[-1]).to_pylist(), self._field("flags").to_pylist()
        distractors = self._field("distractors").to_pylist()
        own = captions[:, -1].astype(np.int64)
        all_captions = []
        for first, length in zip(np.cumsum(self.lengths) - self.lengths, self.lengths, strict=True):
            here = slice(first, first + length)
            tokens = dict(zip(texts[here], own[here], strict=True))
            others = [[other["index"] for other in each or ()] for each in distractors[here]]
            rejected = rejected_of(texts[here], [each or () for each in flags[here]], others)
            lengths.append(len(rejected))
            for place, against in rejected.items():
                longest = sorted((tokens[text] for text in against), reverse=True)[:rejected_per_region]
                kept.append(first + place)
                branches.append(1 + len(longest))
                all_captions.append(own[first + place] + sum(longest))
        together = np.repeat(np.minimum(all_captions, _MOST).astype(np.uint16)[:, None], len(STYLES), axis=1)
        return Learned(np.array(lengths), together, tiles[np.array(kept, np.int64)], np.array(branches, np.uint8))

    def _caption_tokens(self, processor: CaptionerProcessor) -> np.ndarray:
        """(R, 3) uint16."""
        tokens = np.zeros((len(self._regions), len(STYLES)), np.uint16)
        for place, (style, column) in enumerate(zip(STYLES, CAPTION_COLUMNS, strict=True)):
            texts = self._field(column)
            is_empty = pc.equal(pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), 0)
            if pc.any(is_empty).as_py():
                raise InputError(
                    f"{self._named(is_empty.index(True).as_py())} is labeled, but its {column} is empty: there is no "
                    f"caption for the style {style!r} ({pc.sum(is_empty).as_py()} of {len(texts)} regions of this row "
                    "group). Label the image again with jobs/label_corpus.py."
                )
            tokens[:, place] = np.minimum(processor.caption_lengths(texts.to_pylist()), _MOST)
        return tokens

    def _touched_tiles(self, processor: CaptionerProcessor) -> np.ndarray:
        """(R,) uint16: tiles of the grid that the region's box touches, and the thumbnail where there is one."""
        grids = np.array([processor.grid((int(height), int(width))) for height, width in self.sizes])
        columns, rows = np.repeat(grids, self.lengths, axis=0).T
        height, width = np.repeat(self.sizes, self.lengths, axis=0).T
        x, y, box_width, box_height = self._field("bbox").flatten().to_numpy().reshape(-1, 4).T.astype(np.float64)
        across = _touched(x, x + box_width, width, columns)
        down = _touched(y, y + box_height, height, rows)
        return (across * down + (columns * rows > 1)).astype(np.uint16)


def _touched(low: np.ndarray, high: np.ndarray, length: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """How many of so many equal cells of an axis a stretch of it touches."""
    first = np.clip(np.floor(low * cells / length), 0, cells - 1)
    last = np.clip(np.ceil(high * cells / length), first + 1, cells)
    return (last - first).astype(np.int64)
