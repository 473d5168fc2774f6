"""The pass over a region table before training: what its images and regions are, and whether they can be trained on.

It reads the small columns of one row group after the other: ids, sizes, boxes, captions; neither images nor masks. At
some images it looks closer: at their files' heads, which say the size, and at the runs of their regions' masks.
"""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ureca import io
from ureca.corpus.images import MOST_PIXELS, check_image_size
from ureca.corpus.row_groups import RowGroups, TableFile
from ureca.corpus.schema import ImageRow
from ureca.corpus.split import split_heldout
from ureca.errors import ImageError, InputError, MaskError, UrecaError
from ureca.model import CaptionerProcessor
from ureca.regions.rle import check_rles
from ureca.runs import Progress
from ureca.training.learnable import CAPTION_COLUMNS, Learnable

__all__ = ["check_masks", "scan_table"]

_LEAVES = {
    *("image_id", "status", "height", "width", "image.path"),
    *(f"regions.{name}" for name in ("region_id", "segmentation.size", "bbox", *CAPTION_COLUMNS)),
}
"""What the pass over the table reads."""
_LEAVES_OF_PAIRS = {"regions.flags", "regions.distractors.index"}
_IMAGES_LOOKED_AT = 64
"""Whose files and masks are tried, of those that a table names by their paths."""
_INSIDE_LOOKED_AT = 8
"""The same of images that lie in the table: each costs reading a row group with its images."""
_AT_ONCE = 8
"""Of them: in S3 each takes a few round trips."""
_HEAD_BYTES = 2**18
"""Of an image's file: its size stands near its beginning, seldom behind a large color profile."""
_SILENT_SECONDS = 5
"""Before the pass shows its progress."""

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
        InputError, MaskError, ImageError: as `prepare_index`.
    """
    groups = RowGroups(files)
    ids: list[str] = []
    learnable_ids: list[str] = []
    images, captions, tiles, branches = [], [], [], []
    closer = _Closer()
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
                found = Learnable(file.path, batch)
                if not len(found):
                    continue
                found.check_images(len(batch) - (groups.num_absent(number, group, "image.bytes") or 0))
                found.check_masks()
                found.check_boxes()
                if rejected_per_region is not None:
                    found.check_distractors()
                learned = found.learned(processor, rejected_per_region)
            except pa.ArrowException as error:
                raise InputError(
                    f"{file.path}: a column has another type than the region table's ({error}). "
                    "Write it with ureca.corpus.REGION_TABLE_SCHEMA."
                ) from error
            closer.add(found, number, group)
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
    closer.look(table, groups)
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


def check_masks(table: str, row: ImageRow) -> None:
    """Raises MaskError, naming the region, if a mask of the row can't be decoded."""
    where = [f"{table}: image {row.image_id!r}, region {region.region_id!r}" for region in row.regions]
    check_rles([region.segmentation for region in row.regions], row.size, where=where)


class _Candidate(NamedTuple):
    file: int
    group: int
    row: int
    is_inside: bool


class _Closer:
    """Some of a table's images, evenly spread, at which to look closer."""

    def __init__(self) -> None:
        self._total = 0
        self._candidates: list[_Candidate] = []

    def add(self, found: Learnable, file: int, group: int) -> None:
        """The images of a row group: of the first one many, else one."""
        self._total += len(found)
        most = 1 if self._candidates else _IMAGES_LOOKED_AT
        for row, path in list(zip(found.rows.tolist(), found.paths, strict=True))[:most]:
            self._candidates.append(_Candidate(file, group, row, is_inside=path is None))

    def look(self, table: str, groups: RowGroups) -> None:
        """Raises ImageError or MaskError if an image's file is missing or of another size, or a mask is damaged."""
        chosen = _spread([each for each in self._candidates if not each.is_inside], _IMAGES_LOOKED_AT)
        chosen += _spread([each for each in self._candidates if each.is_inside], _INSIDE_LOOKED_AT)

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
            if isinstance(problem, MaskError):  # names all of it
                raise problem
            raise ImageError(
                f"{table}: image {image_id!r}: {problem} Of the table's {self._total} labeled images {len(chosen)} "
                f"were looked at; {len(wrong)} can't be used."
            )


def _spread(candidates: list[_Candidate], most: int) -> list[_Candidate]:
    """The first, and others evenly spread."""
    return [candidates[round(at)] for at in np.linspace(0, len(candidates) - 1, min(most, len(candidates)))]


def _check_image(row: ImageRow) -> None:
    """Raises ImageError, InputError or StorageError if the image is not there, or not of the row's size."""
    limit = MOST_PIXELS
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
