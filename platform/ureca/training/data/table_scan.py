"""Scan of a region table before training: lengths of its images and regions, and whether they can be trained on.

The scan reads the small columns row group by row group: ids, sizes, boxes, captions; neither images nor masks. A sample
of the images is checked more closely: the size in the file header, and the runs of the region masks.
"""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ureca.corpus.images import PIXEL_LIMIT, check_image_size
from ureca.corpus.row_groups import RowGroups, TableFile
from ureca.corpus.schema import ImageRow
from ureca.corpus.split import evenly_spaced, split_heldout
from ureca.errors import ImageError, InputError, MaskError, MaskSizeError, UrecaError
from ureca.model.processor import CaptionerProcessor
from ureca.regions.rle import check_rles
from ureca.runs import Progress
from ureca.storage import files as io
from ureca.training.data.examples import rejected_of
from ureca.training.data.sampler import STYLES

CAPTION_COLUMNS = ("short_caption", "long_caption", "caption")
"""Caption columns, in the order of `STYLES`."""

_MOST = np.iinfo(np.uint16).max


class RowGroupStats(NamedTuple):
    """Statistics of a row group's training images: all their regions, in stage 3 those with a preference pair."""

    lengths: np.ndarray
    """Regions per image."""
    captions: np.ndarray
    tiles: np.ndarray
    branches: np.ndarray


class TrainableRows:
    """The labeled images of a row group that have regions."""

    def __init__(self, path: str, batch: pa.Table) -> None:
        self._path = path
        lengths = pc.fill_null(pc.list_value_length(batch["regions"]), 0).to_numpy()
        is_labeled = pc.fill_null(pc.equal(batch["status"], "labeled"), False).to_numpy(zero_copy_only=False)
        self.rows = np.flatnonzero(is_labeled & (lengths > 0))
        """Row numbers within the row group."""
        kept = batch.take(pa.array(self.rows)).combine_chunks()
        self.ids: list[str] = kept["image_id"].to_pylist()
        self.lengths = lengths[self.rows]
        """Regions per image."""
        self.paths: list[str | None] = pc.struct_field(kept["image"], "path").to_pylist()
        heights, widths = (pc.fill_null(kept[name].cast(pa.int32()), 0).to_numpy() for name in ("height", "width"))
        self.sizes = np.stack([heights, widths], axis=1)
        """(height, width) per image."""
        regions = kept["regions"]
        self._regions = (regions.combine_chunks() if len(regions) else pa.array([], regions.type)).flatten()

    def __len__(self) -> int:
        return len(self.ids)

    def _named(self, region: int) -> str:
        """Name a region in errors, given its index in the row group."""
        image = int(np.searchsorted(np.cumsum(self.lengths), region, side="right"))
        return f"{self._path}: image {self.ids[image]!r}, region {self._field('region_id')[region].as_py()!r}"

    def _field(self, name: str) -> pa.Array:
        return pc.struct_field(self._regions, name)

    def check_images(self, num_with_bytes: int) -> None:
        """Raise ImageError if an image has neither path nor bytes; `num_with_bytes` images of the row group have
        bytes."""
        without_path = [image_id for image_id, path in zip(self.ids, self.paths, strict=True) if path is None]
        if len(without_path) > num_with_bytes:
            raise ImageError(
                f"{self._path}: {len(without_path)} images of a row group have no path (first: {without_path[0]!r}), "
                f"but only {num_with_bytes} have bytes. Rewrite the table with a path or bytes for each image."
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
        """Raise InputError if a region's box is not four numbers, or lies outside the image."""
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
                "(height, width). Write x, y, width, height in pixels, as ureca.regions.rle.rle_bbox returns them."
            )

    def check_distractors(self) -> None:
        """Raise InputError if a distractor is not a region of the same image."""
        distractors = self._field("distractors")
        counts = pc.fill_null(pc.list_value_length(distractors), 0).to_numpy()
        indices = pc.fill_null(pc.struct_field(distractors.flatten(), "index"), -1).to_numpy()
        owner = np.repeat(np.arange(len(counts)), counts)
        num_regions = np.repeat(self.lengths, self.lengths)[owner]
        outside = np.flatnonzero((indices < 0) | (indices >= num_regions))
        if len(outside):
            first = outside[0]
            raise InputError(
                f"{self._named(int(owner[first]))} has the distractor {indices[first]}, but its image's "
                f"{num_regions[first]} regions have indices 0 to {num_regions[first] - 1}. Label the image again with "
                "jobs/label_corpus.py, or skip stage 3."
            )

    def stats(self, processor: CaptionerProcessor, rejected_per_region: int | None) -> RowGroupStats:
        """Compute the statistics. Raises InputError if a caption is empty."""
        captions, tiles = self._caption_tokens(processor), self._touched_tiles(processor)
        if rejected_per_region is None:
            return RowGroupStats(self.lengths, captions, tiles, np.ones(len(tiles), np.uint8))
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
        return RowGroupStats(np.array(lengths), together, tiles[np.array(kept, np.int64)], np.array(branches, np.uint8))

    def _caption_tokens(self, processor: CaptionerProcessor) -> np.ndarray:
        """Count caption tokens: (R, 3) uint16."""
        tokens = np.zeros((len(self._regions), len(STYLES)), np.uint16)
        for place, (style, column) in enumerate(zip(STYLES, CAPTION_COLUMNS, strict=True)):
            texts = self._field(column)
            is_empty = pc.equal(pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), 0)
            if pc.any(is_empty).as_py():
                raise InputError(
                    f"{self._named(is_empty.index(True).as_py())} is labeled, but its {column} is empty: it has no "
                    f"caption for style {style!r} ({pc.sum(is_empty).as_py()} of {len(texts)} regions of this row "
                    "group). Label the image again with jobs/label_corpus.py."
                )
            tokens[:, place] = np.minimum(processor.caption_lengths(texts.to_pylist()), _MOST)
        return tokens

    def _touched_tiles(self, processor: CaptionerProcessor) -> np.ndarray:
        """Count the tiles that each region's box touches, plus the thumbnail if there is one: (R,) uint16."""
        grids = np.array([processor.grid((int(height), int(width))) for height, width in self.sizes])
        columns, rows = np.repeat(grids, self.lengths, axis=0).T
        height, width = np.repeat(self.sizes, self.lengths, axis=0).T
        x, y, box_width, box_height = self._field("bbox").flatten().to_numpy().reshape(-1, 4).T.astype(np.float64)
        across = _touched(x, x + box_width, width, columns)
        down = _touched(y, y + box_height, height, rows)
        return (across * down + (columns * rows > 1)).astype(np.uint16)


def _touched(low: np.ndarray, high: np.ndarray, length: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Count the equal cells of an axis that a range touches."""
    first = np.clip(np.floor(low * cells / length), 0, cells - 1)
    last = np.clip(np.ceil(high * cells / length), first + 1, cells)
    return (last - first).astype(np.int64)


_LEAVES = {
    *("image_id", "status", "height", "width", "image.path"),
    *(f"regions.{name}" for name in ("region_id", "segmentation.size", "bbox", *CAPTION_COLUMNS)),
}
"""Columns that the scan reads."""
_LEAVES_OF_PAIRS = {"regions.flags", "regions.distractors.index"}
_IMAGES_LOOKED_AT = 64
"""Images to check closely, for tables that name images by path."""
_INSIDE_LOOKED_AT = 8
"""The same for images stored in the table: each check reads a row group with its images."""
_AT_ONCE = 8
"""Parallel checks: with S3 each takes a few round trips."""
_HEAD_BYTES = 2**18
"""Bytes to read of an image file: the size is near the beginning, rarely behind a large color profile."""
_SILENT_SECONDS = 5
"""Seconds before the scan prints progress."""

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
    """Scan the table; return the index arrays `images`, `captions`, `tiles`, `branches` (see table_index.py).

    Raises:
        InputError, MaskError, ImageError: like `prepare_index`.
    """
    groups = RowGroups(files)
    ids: list[str] = []
    learnable_ids: list[str] = []
    images, captions, tiles, branches = [], [], [], []
    closer = _SpotChecker()
    progress = Progress("index", sum(file.num_rows for file in files), unit="images")
    started = time.monotonic()
    wanted = _LEAVES if rejected_per_region is None else _LEAVES | _LEAVES_OF_PAIRS
    for number, file in enumerate(files):
        if missing := sorted(wanted.difference(groups.leaves(number))):
            raise InputError(
                f"{file.path}: {', '.join(missing)} missing. Use a table written by jobs/label_corpus.py, or write it "
                "with ureca.corpus.schema.REGION_TABLE_SCHEMA."
            )
        for group, batch in enumerate(groups.scan(number, wanted.__contains__)):
            ids += batch["image_id"].to_pylist()
            if time.monotonic() - started > _SILENT_SECONDS:
                progress.update(len(ids))
            try:
                found = TrainableRows(file.path, batch)
                if not len(found):
                    continue
                found.check_images(len(batch) - (groups.num_absent(number, group, "image.bytes") or 0))
                found.check_masks()
                found.check_boxes()
                if rejected_per_region is not None:
                    found.check_distractors()
                stats = found.stats(processor, rejected_per_region)
            except pa.ArrowException as error:
                raise InputError(
                    f"{file.path}: a column's type differs from the region table's ({error}). Write it with "
                    "ureca.corpus.schema.REGION_TABLE_SCHEMA."
                ) from error
            closer.add(found, number, group)
            records = np.zeros(len(found), _IMAGE)
            records["file"], records["group"], records["row"] = number, group, found.rows
            records["key"] = [_key(image_id) for image_id in found.ids]
            records["height"], records["width"] = found.sizes.T
            records["regions"] = stats.lengths
            captions.append(stats.captions)
            tiles.append(stats.tiles)
            branches.append(stats.branches)
            images.append(records)
            learnable_ids += found.ids
    progress.close()
    _check_unique(table, ids)
    left_out = set(split_heldout(ids, heldout, heldout_seed).heldout) if heldout else set()
    order = sorted((image_id, place) for place, image_id in enumerate(learnable_ids) if image_id not in left_out)
    if not order:
        raise InputError(
            f"{table}: none of its {len(ids)} images is labeled and not held out, so there is nothing to train on. "
            "Label it with jobs/label_corpus.py, or lower --heldout."
        )
    closer.look(table, groups)
    together = np.concatenate(images)
    chosen = np.array([place for _, place in order if together["regions"][place]], dtype=np.int64)
    if not len(chosen):
        raise InputError(
            f"{table}: none of its {len(order)} labeled images has a region with a distractor of another caption, so "
            "there are no preference pairs. Label with jobs/label_corpus.py and a lower "
            "--distractors.min_similarity, or skip stage 3."
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
        raise InputError(f"{table}: image id {twice!r} is repeated. Image ids must be unique in a table.")


def _gathered(lengths: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the indices of the elements of chosen groups; `lengths` has the number of elements per group."""
    first = np.cumsum(lengths) - lengths
    counts = lengths[chosen]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first[chosen], counts) + within


def check_masks(table: str, row: ImageRow) -> None:
    """Raise MaskError, naming the region, if a mask of the row can't be decoded."""
    where = [f"{table}: image {row.image_id!r}, region {region.region_id!r}" for region in row.regions]
    check_rles([region.segmentation for region in row.regions], row.size, where=where)


class _Candidate(NamedTuple):
    file: int
    group: int
    row: int
    is_inside: bool


class _SpotChecker:
    """Evenly spaced sample of a table's images, for close checks."""

    def __init__(self) -> None:
        self._total = 0
        self._candidates: list[_Candidate] = []

    def add(self, found: TrainableRows, file: int, group: int) -> None:
        """Add candidates of a row group: many of the first one, one of each other."""
        self._total += len(found)
        most = 1 if self._candidates else _IMAGES_LOOKED_AT
        for row, path in list(zip(found.rows.tolist(), found.paths, strict=True))[:most]:
            self._candidates.append(_Candidate(file, group, row, is_inside=path is None))

    def look(self, table: str, groups: RowGroups) -> None:
        """Check the sample. Raises ImageError if a file is missing or differs in size, MaskError if a mask is
        damaged."""
        chosen = evenly_spaced([each for each in self._candidates if not each.is_inside], _IMAGES_LOOKED_AT)
        chosen += evenly_spaced([each for each in self._candidates if each.is_inside], _INSIDE_LOOKED_AT)

        def look_at(candidate: _Candidate) -> tuple[str, UrecaError] | None:
            row = groups.row(candidate.file, candidate.group, candidate.row)
            try:
                _check_image(row)
                check_masks(table, row)
            except UrecaError as error:
                return row.image_id, error
            return None

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            wrong = [found for found in pool.map(look_at, chosen) if found is not None]
        if wrong:
            image_id, problem = wrong[0]
            if isinstance(problem, MaskError):  # already complete
                raise problem
            raise ImageError(
                f"{table}: image {image_id!r}: {problem} Of the table's {self._total} labeled images {len(chosen)} "
                f"were sampled; {len(wrong)} can't be used."
            )


def _check_image(row: ImageRow) -> None:
    """Check an image file. Raises ImageError, InputError or StorageError if it is missing or differs in size."""
    limit = PIXEL_LIMIT
    if row.image_path is None:
        check_image_size(row.image_bytes or b"", where="its bytes", size=row.size, max_pixels=limit)
        return
    data = io.read_bytes(row.image_path, length=_HEAD_BYTES)
    try:
        check_image_size(data, where=row.image_path, size=row.size, max_pixels=limit)
    except ImageError:
        if len(data) < _HEAD_BYTES:
            raise
        check_image_size(io.read_bytes(row.image_path), where=row.image_path, size=row.size, max_pixels=limit)
