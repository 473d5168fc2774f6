"""The pass over a region table before training: what its images and regions are, and whether they can be trained on.

It reads the small columns of one row group after the other: ids, sizes, boxes, captions; neither images nor masks. Of
the images that a table names by their paths it looks at some.
"""

import hashlib
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ureca import io
from ureca.corpus.row_groups import RowGroups, TableFile
from ureca.corpus.split import split_heldout
from ureca.errors import ImageError, InputError, UrecaError
from ureca.model import CaptionerProcessor
from ureca.runs import Progress
from ureca.training.learnable import CAPTION_COLUMNS, Learnable

__all__ = ["scan_table"]

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


class _ByReference:
    """The images that a table names by their paths, of which some are looked at."""

    def __init__(self) -> None:
        self._total = 0
        self._candidates: list[tuple[str, str]] = []

    def add(self, found: Learnable) -> None:
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
