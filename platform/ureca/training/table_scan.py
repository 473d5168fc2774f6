"""The pass over a region table before training: what its images and regions are, and whether they can be trained on.

It reads the small columns of one row group after the other: ids, sizes, boxes, captions; neither images nor masks. Of
the images that a table names by their paths it looks at some.
"""

import hashlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ureca import io
from ureca.corpus.row_groups import RowGroups, TableFile
from ureca.corpus.split import split_heldout
from ureca.errors import ImageError, InputError, MaskSizeError, UrecaError
from ureca.model import CaptionerProcessor
from ureca.runs import Progress
from ureca.training.index import STYLES
from ureca.training.pairs import rejected_of

__all__ = ["scan_table"]

CAPTION_COLUMNS = ("short_caption", "long_caption", "caption")
"""In the order of `STYLES`."""

_LEAVES = {
    *("image_id", "status", "height", "width", "image.path"),
    *(f"regions.{name}" for name in ("region_id", "segmentation.size", "bbox", *CAPTION_COLUMNS)),
}
"""What the pass over the table reads."""
_LEAVES_OF_PAIRS = {"regions.flags", "regions.distractors.index"}
_IMAGES_LOOKED_AT = 64
"""Of the images that a table holds by reference: whether their files are there is tried for so many."""
_SILENT_SECONDS = 5
"""Before the pass shows its progress."""
_MOST = np.iinfo(np.uint16).max

_IMAGE = np.dtype(
    [
        ("key", "u8"),
        ("file", "u4"),
        ("group", "u4"),
        ("row", "u4"),
        ("height", "u4"),
        ("width", "u4"),
        ("regions", "u4"),
    ]
)


def scan_table(
    table: str,
    files: Sequence[TableFile],
    processor: CaptionerProcessor,
    *,
    heldout: float,
    heldout_seed: int,
    rejected_per_region: int | None,
) -> dict[str, np.ndarray]:
    """The arrays of a table's index: `images`, `captions`, `tiles`, `branches`; see table_index.py.

    Raises:
        InputError, MaskSizeError, ImageError: as `prepare_index`.
    """
    groups = RowGroups(files)
    ids: list[str] = []
    learnable_ids: list[str] = []
    images, captions, tiles, branches = [], [], [], []
    by_reference = _ByReference()
    progress = Progress("index", sum(file.num_rows for file in files), unit="images")
    started = time.monotonic()
    wanted = _LEAVES if rejected_per_region is None else _LEAVES | _LEAVES_OF_PAIRS
    for number, file in enumerate(files):
        if missing := sorted(wanted.difference(groups.leaves(number))):
            raise InputError(
                f"{file.path}: {', '.join(missing)} missing. Give a table that jobs/label_corpus.py wrote, or write it "
                "with ureca.corpus.REGION_TABLE_SCHEMA."
            )
        for group, batch in enumerate(groups.scan(number, wanted.__contains__)):
            ids += batch["image_id"].to_pylist()
            if time.monotonic() - started > _SILENT_SECONDS:
                progress.update(len(ids))
            try:
                found = _Learnable(file.path, batch)
                if not len(found):
                    continue
                found.check_images(len(batch) - (groups.num_absent(number, group, "image.bytes") or 0))
                found.check_masks()
                if rejected_per_region is not None:
                    found.check_distractors()
                learned = found.learned(processor, rejected_per_region)
            except pa.ArrowException as error:
                raise InputError(
                    f"{file.path}: a column has another type than the region table's ({error}). "
                    "Write it with ureca.corpus.REGION_TABLE_SCHEMA."
                ) from error
            by_reference.add(found)
            records = np.zeros(len(found), _IMAGE)
            records["file"], records["group"], records["row"] = number, group, found.rows
            records["key"] = [_key(image_id) for image_id in found.ids]
            records["height"], records["width"] = found.sizes.T
            records["regions"] = learned.lengths
            captions.append(learned.captions)
            tiles.append(learned.tiles)
            branches.append(learned.branches)
            images.append(records)
            learnable_ids += found.ids
    progress.close()
    _check_unique(table, ids)
    left_out = set(split_heldout(ids, heldout, heldout_seed).heldout) if heldout else set()
    order = sorted((image_id, place) for place, image_id in enumerate(learnable_ids) if image_id not in left_out)
    if not order:
        raise InputError(
            f"{table}: none of its {len(ids)} images is labeled and not held out, so there is nothing to "
            "train on. Write captions into it with jobs/label_corpus.py, or hold out a smaller share."
        )
    by_reference.check(table)
    together = np.concatenate(images)
    chosen = np.array([place for _, place in order if together["regions"][place]], dtype=np.int64)
    if not len(chosen):
        raise InputError(
            f"{table}: none of its {len(order)} labeled images has a region with a distractor of another caption, "
            "so there are no pairs to learn from. Label with jobs/label_corpus.py and a lower "
            "--distractors.min_similarity, or let stage 2 be the last."
        )
    regions = _gathered(together["regions"].astype(np.int64), chosen)
    return {
        "images": together[chosen],
        "captions": np.concatenate(captions)[regions],
        "tiles": np.concatenate(tiles)[regions],
        "branches": np.concatenate(branches)[regions],
    }


def _key(image_id: str) -> int:
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")


def _check_unique(table: str, ids: list[str]) -> None:
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(image_id for image_id in ids if image_id in seen or seen.add(image_id))  # type: ignore[func-returns-value]
        raise InputError(f"{table}: image id {twice!r} occurs twice. Image ids must be unique in a table.")


def _gathered(lengths: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Numbers of the elements of chosen groups, of which `lengths` says how many elements each has."""
    first = np.cumsum(lengths) - lengths
    counts = lengths[chosen]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first[chosen], counts) + within


class _Learned(NamedTuple):
    """What is learned from the images of a row group: all their regions, or those that have a pair."""

    lengths: np.ndarray
    """Regions of each image."""
    captions: np.ndarray
    tiles: np.ndarray
    branches: np.ndarray


class _Learnable:
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

    def learned(self, processor: CaptionerProcessor, rejected_per_region: int | None) -> _Learned:
        """Raises InputError where a caption is empty."""
        captions, tiles = self._caption_tokens(processor), self._touched_tiles(processor)
        if rejected_per_region is None:
            return _Learned(self.lengths, captions, tiles, np.ones(len(tiles), np.uint8))
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
        return _Learned(np.array(lengths), together, tiles[np.array(kept, np.int64)], np.array(branches, np.uint8))

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


class _ByReference:
    """The images that a table names by their paths, of which some are looked at."""

    def __init__(self) -> None:
        self._total = 0
        self._candidates: list[tuple[str, str]] = []

    def add(self, found: _Learnable) -> None:
        named = [(image_id, path) for image_id, path in zip(found.ids, found.paths, strict=True) if path is not None]
        self._total += len(named)
        self._candidates += named[:1] if self._candidates else named[:_IMAGES_LOOKED_AT]

    def check(self, table: str) -> None:
        """Raises ImageError if a file is missing among those looked at: the first, and others evenly spread."""
        spread = np.linspace(0, len(self._candidates) - 1, min(_IMAGES_LOOKED_AT, len(self._candidates)))
        looked_at = [self._candidates[round(place)] for place in spread]
        missing = [(image_id, problem) for image_id, path in looked_at if (problem := _problem(path)) is not None]
        if missing:
            image_id, problem = missing[0]
            raise ImageError(
                f"{table}: image {image_id!r}: {problem} Of the {self._total} images that the table names by their "
                f"paths {len(looked_at)} were looked at; {len(missing)} can't be read."
            )


def _problem(path: str) -> str | None:
    try:
        io.read_bytes(path, length=1)
    except UrecaError as error:
        return str(error)
    return None
