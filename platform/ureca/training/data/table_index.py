"""What training must know of a region table before its first step, in a few bytes an image; rows stay on disk.

    <run>/table_index/index.json     the table's files and their digests, what the lengths were counted with
                      images.npy     one record for each image to learn from, in the order of their ids: where its row
                                     lies (file, row group, row), its size, its number of regions, a hash of its id
                      captions.npy   (R, 3) tokens of the three captions of each region, images one after the other
                      tiles.npy      (R,)   mask tiles that the region's box touches: at most so many are shown
                      branches.npy   (R,)   captions that a region is shown with: 1, or in stage 3 those rejected too

The driver makes it in one pass over the table's small columns (table_scan.py), which is where a table that can't be
trained on is refused. It is made once for a run: a start that finds it, and the table's files as
they were, takes it; a table that has changed under a begun run is refused, by the driver and by each worker.

Sizes: 32 bytes an image and 9 a region, mapped into memory and so shared by the workers of a machine.
"""

import hashlib
import os
import shutil
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ureca.corpus.row_groups import RowGroups, TableFile, table_files
from ureca.corpus.schema import ImageRow
from ureca.errors import InputError
from ureca.model.processor import CaptionerProcessor
from ureca.storage import files as io
from ureca.training.data.table_scan import scan_table

INDEX_DIRECTORY = "table_index"
INDEX_RECORD = "index.json"
_ARRAYS = ("images", "captions", "tiles", "branches")


@dataclass(frozen=True)
class TableIndex:
    """See the module's docstring. I images to learn from, R regions of theirs.

    In stage 3 these are the regions that have a pair, and the images that have such regions.
    """

    files: tuple[TableFile, ...]
    images: np.ndarray
    """(I,) records."""
    captions: np.ndarray
    """(R, 3) uint16 tokens, the end marker included, in the order of `STYLES`; of all branches together."""
    tiles: np.ndarray
    """(R,) uint16."""
    branches: np.ndarray
    """(R,) uint8."""

    def __len__(self) -> int:
        """Images to learn from."""
        return len(self.images)

    @cached_property
    def first(self) -> np.ndarray:
        """(I + 1,) int64: the number of each image's first region, and R."""
        return np.concatenate([[0], np.cumsum(self.images["regions"], dtype=np.int64)])

    def rows(self) -> "IndexedRows":
        """A reader of the rows."""
        return IndexedRows(self)


class IndexedRows:
    """The rows of a table's images to learn from, by number, each read when it is asked for. Thread-safe."""

    def __init__(self, index: TableIndex) -> None:
        self._images = index.images
        self._groups = RowGroups(index.files)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> ImageRow:
        """Raises InputError if the table has changed since its index was made."""
        place = self._images[number]
        return self._groups.row(int(place["file"]), int(place["group"]), int(place["row"]))


def prepare_index(
    table: str,
    directory: Path,
    processor: CaptionerProcessor,
    *,
    heldout: float,
    heldout_seed: int,
    has_begun: bool,
    rejected_per_region: int | None = None,
) -> TableIndex:
    """The index of a run in `directory`: the one that is there, if it is of this table; else made from the table.

    Args:
        has_begun: the run has steps behind it, so that another table would silently change it.
        rejected_per_region: of stage 3, which learns from pairs.

    Raises:
        InputError: there is no such table, it is of another schema or version, it has nothing to learn from, a
            caption is empty, an image id occurs twice, or it has changed under a run that has begun.
        MaskSizeError: a region's mask is of another size than its image.
        MaskError: a mask can't be decoded, among those looked at.
        ImageError: an image's file is missing or of another size than the table says, among those looked at.
        StorageError: S3 refuses or does not answer.
    """
    files = table_files(table)
    record = {
        "files": [list(file) for file in files],
        "heldout": heldout,
        "heldout_seed": heldout_seed,
        "rejected_per_region": rejected_per_region,
        "counted_with": {
            "tile_px": processor.tile_px,
            "tile_limit": processor.tile_limit,
            "tokenizer": _tokenizer_digest(processor),
        },
    }
    folder = directory / INDEX_DIRECTORY
    if (folder / INDEX_RECORD).is_file():
        found = io.read_json(folder / INDEX_RECORD)
        if found == record:
            return open_index(directory)
        if has_begun:
            _refuse_changed(table, directory, found, record)
    arrays = scan_table(
        table,
        files,
        processor,
        heldout=heldout,
        heldout_seed=heldout_seed,
        rejected_per_region=rejected_per_region,
    )
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        for name, values in arrays.items():
            np.save(partial / f"{name}.npy", values)
        io.write_json(partial / INDEX_RECORD, record)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_index(directory)


def open_index(directory: Path) -> TableIndex:
    """The index that `prepare_index` left in a run's directory."""
    folder = directory / INDEX_DIRECTORY
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    files = io.read_json(folder / INDEX_RECORD)["files"]
    return TableIndex(files=tuple(TableFile(*file) for file in files), **arrays)


def _tokenizer_digest(processor: CaptionerProcessor) -> str:
    words = sorted(processor.tokenizer.get_vocab().items())
    return hashlib.sha256(repr(words).encode()).hexdigest()


def _refuse_changed(table: str, directory: Path, found: dict[str, Any], record: dict[str, Any]) -> None:
    before = {file[0]: file for file in found["files"]}
    now = {file[0]: file for file in record["files"]}
    differing = sorted(path for path in {**before, **now} if before.get(path) != now.get(path))
    if not differing:  # what was counted with, or the share held out: a checkpoint of another plan, refused as such
        return
    raise InputError(
        f"{table}: has changed since the run in {directory} began ({len(differing)} of its files, the first "
        f"{differing[0]}). Put the former table back, or start again with another --run_directory."
    )
