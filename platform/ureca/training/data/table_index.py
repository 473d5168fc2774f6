"""Index of a region table for training: lengths and locations in a few bytes per image; rows stay on disk.

    <run>/table_index/index.json     the table's files and digests, and the tokenizer settings of the counts
                      images.npy     one record per training image, sorted by id: location of the row (file, row group,
                                     row), image size, number of regions, hash of the id
                      captions.npy   (R, 3) tokens of the three captions of each region, image by image
                      tiles.npy      (R,)   mask tiles that the region's box touches, an upper bound of those encoded
                      branches.npy   (R,)   captions shown per region: 1, in stage 3 also the rejected ones

The driver builds the index in one pass over the table's small columns (table_scan.py), which also refuses tables that
can't be trained on. It is built once per run: later starts reuse it while the table's files are unchanged. A table that
changed after the first step is refused by the driver and by each worker.

Size: 32 bytes per image and 9 per region, memory-mapped and shared by the workers of a machine.
"""

import hashlib
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
from ureca.storage.local import atomic_folder
from ureca.training.data.table_scan import scan_table

INDEX_DIRECTORY = "table_index"
INDEX_RECORD = "index.json"
_ARRAYS = ("images", "captions", "tiles", "branches")


@dataclass(frozen=True)
class TableIndex:
    """Index of I training images with R regions; the module docstring describes the arrays.

    In stage 3 only regions with a preference pair count, and only images with such regions.
    """

    files: tuple[TableFile, ...]
    images: np.ndarray
    """(I,) records."""
    captions: np.ndarray
    """(R, 3) uint16 tokens including the end token, in the order of `STYLES`, summed over all branches."""
    tiles: np.ndarray
    """(R,) uint16."""
    branches: np.ndarray
    """(R,) uint8."""

    def __len__(self) -> int:
        """Number of training images."""
        return len(self.images)

    @cached_property
    def first(self) -> np.ndarray:
        """(I + 1,) int64: index of each image's first region, and R."""
        return np.concatenate([[0], np.cumsum(self.images["regions"], dtype=np.int64)])

    def rows(self) -> "IndexedRows":
        """Return a reader of the table rows."""
        return IndexedRows(self)


class IndexedRows:
    """Rows of the training images by index, read on demand. Thread-safe."""

    def __init__(self, index: TableIndex) -> None:
        self._images = index.images
        self._groups = RowGroups(index.files)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> ImageRow:
        """Read a row. Raises InputError if the table has changed since the index was built."""
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
    """Open the run's index in `directory`, or build it if it is missing or belongs to another table.

    Args:
        has_begun: the run has completed steps, so another table would silently change it.
        rejected_per_region: preference pairs per region, in stage 3 only.

    Raises:
        InputError: the table is missing, has another schema or version, or no trainable images; a caption is empty; an
            image id is repeated; or the table changed after the run's first step.
        MaskSizeError: the size of a region's mask differs from its image's.
        MaskError: a mask can't be decoded, among those sampled.
        ImageError: an image file is missing or differs in size from the table, among those sampled.
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
    with atomic_folder(folder) as partial:
        for name, values in arrays.items():
            np.save(partial / f"{name}.npy", values)
        io.write_json(partial / INDEX_RECORD, record)
    return open_index(directory)


def open_index(directory: Path) -> TableIndex:
    """Open the index that `prepare_index` wrote."""
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
    if (
        not differing
    ):  # only the tokenizer or the held-out share differ: the checkpoint's plan differs too and is refused there
        return
    raise InputError(
        f"{table}: has changed since the run in {directory} started ({len(differing)} of its files, first "
        f"{differing[0]}). Restore the former table, or set another --run_directory."
    )
