"""Random access to rows of a region table by location, for indexes that point into the table.

    location   (file, row group, row): indices, each counted from 0 within the previous one
    footer     end of a parquet file: schema, and location, size and statistics of each row group. Two files with the
               same length and footer hold the same table, short of intent.

A row group is parquet's unit of reading; `write_regions` writes groups of 16 images, about 10 MB if the table holds
image bytes. Random access then reads 16 images to get one: store images by reference (`image.path`) where that matters,
as in S3.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ureca.corpus.schema import REGION_TABLE_SCHEMA, ImageRow
from ureca.corpus.table import as_region_batch, check_schema, open_parquet
from ureca.errors import InputError
from ureca.storage import files as io

_MAGIC_BYTES = 8
"""End of a parquet file: the footer's length, and `PAR1`."""
_AT_ONCE = 16
"""Footers to read concurrently: in S3 each takes a few round trips."""


class TableFile(NamedTuple):
    """One file of a region table, with a fingerprint."""

    path: str
    num_bytes: int
    num_rows: int
    footer: str
    """SHA-256 of the footer."""


def table_files(path: str) -> list[TableFile]:
    """Return the files of a region table (a parquet file or a folder of them), each with a readable schema.

    Raises:
        InputError: missing, another kind of table, or another version.
        StorageError: S3 refuses or does not answer.
    """
    files = io.list_files(path, ".parquet")
    if not files:
        raise InputError(f"{path}: no parquet file in it. Name a region table, written by jobs/label_corpus.py.")
    with ThreadPoolExecutor(min(_AT_ONCE, len(files))) as pool:
        return list(pool.map(_describe, files))


def _describe(file_path: str) -> TableFile:
    with io.open_input(file_path) as stream:
        parquet = open_parquet(stream, file_path)
        columns = check_schema(parquet.schema_arrow, file_path)
        # Casting zero rows checks the types.
        empty = pa.RecordBatch.from_pylist([], schema=parquet.schema_arrow).select(columns)
        as_region_batch(empty, file_path)
        return TableFile(file_path, stream.size(), parquet.metadata.num_rows, _footer_digest(stream))


def _footer_digest(stream: Any) -> str:
    size = stream.size()
    length = int.from_bytes(stream.read_at(_MAGIC_BYTES, size - _MAGIC_BYTES)[:4], "little")
    return hashlib.sha256(stream.read_at(length, size - _MAGIC_BYTES - length)).hexdigest()


class _Open(NamedTuple):
    parquet: pq.ParquetFile
    columns: list[str]


class RowGroups:
    """Reads rows of a region table by location. Thread-safe."""

    def __init__(self, files: Sequence[TableFile], *, groups_kept: int = 8, files_open: int = 32) -> None:
        """Prepare reading `files` (from `table_files`); nothing is read yet.

        Args:
            groups_kept: most recently used row groups to keep in memory.
            files_open: files that each thread keeps open.
        """
        self._files = files
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._groups_kept, self._files_open = groups_kept, files_open
        self._lock = threading.Lock()
        self._metadata: dict[int, pq.FileMetaData] = {}
        self._opened = threading.local()  # a ParquetFile is not thread-safe

    def row(self, file: int, group: int, row: int) -> ImageRow:
        """Read the image at a location.

        Raises:
            InputError: the file has changed, or the row is inconsistent.
            StorageError: S3 refuses or does not answer.
        """
        found = self._group(file, group).slice(row, 1).combine_chunks().to_batches()[0]
        return ImageRow.from_record(as_region_batch(found, self._files[file].path).to_pylist()[0])

    def scan(self, file: int, wanted: Callable[[str], bool]) -> Iterator[pa.Table]:
        """Yield the row groups of a file, with the wanted leaves of its columns.

        A leaf is named by its path: `height`, `regions.caption`.
        """
        opened = self._open(file)
        leaves = [path for path, name in _leaves(opened.parquet).items() if wanted(name)]
        for group in range(opened.parquet.num_row_groups):
            with io.reading(self._files[file].path):
                yield opened.parquet.read_row_group(group, columns=leaves).combine_chunks()

    def leaves(self, file: int) -> list[str]:
        """Return the names of a file's leaves."""
        return list(_leaves(self._open(file).parquet).values())

    def num_absent(self, file: int, group: int, leaf: str) -> int | None:
        """Return the number of nulls of a leaf in a row group, from the footer; None if unrecorded."""
        metadata = self._open(file).parquet.metadata.row_group(group)
        for number in range(metadata.num_columns):
            column = metadata.column(number)
            if column.path_in_schema == leaf:
                known = column.is_stats_set and column.statistics.has_null_count
                return column.statistics.null_count if known else None
        return None

    def _group(self, file: int, group: int) -> pa.Table:
        with self._lock:
            if (file, group) in self._groups:
                self._groups.move_to_end((file, group))
                return self._groups[file, group]
        opened = self._open(file)
        with io.reading(self._files[file].path):
            table = opened.parquet.read_row_group(group, columns=opened.columns)
        with self._lock:
            self._groups[file, group] = table
            while len(self._groups) > self._groups_kept:
                self._groups.popitem(last=False)
        return table

    def _open(self, file: int) -> _Open:
        opened: OrderedDict[int, _Open] = self._opened.__dict__.setdefault("files", OrderedDict())
        if file in opened:
            opened.move_to_end(file)
            return opened[file]
        described = self._files[file]
        where, inner = io.filesystem(described.path)
        with io.reading(described.path):
            stream = where.open_input_file(inner)
            changed = stream.size() != described.num_bytes or _footer_digest(stream) != described.footer
        if changed:
            raise InputError(
                f"{described.path}: has changed since training started to read it. Restore the former file, or set "
                "another --run_directory."
            )
        parquet = open_parquet(stream, described.path, self._metadata.get(file))
        self._metadata.setdefault(file, parquet.metadata)
        opened[file] = _Open(parquet, check_schema(parquet.schema_arrow, described.path))
        while len(opened) > self._files_open:
            opened.popitem(last=False)[1].parquet.close()
        return opened[file]


_OF_LISTS = {"list", "element", "item", "bag", "array_element", "array"}
"""Path segments that parquet writers use for list elements."""


def _leaves(parquet: pq.ParquetFile) -> dict[str, str]:
    """Map each leaf of the region table's columns from its path in the file to its name."""
    paths = [parquet.schema.column(number).path for number in range(len(parquet.schema.names))]
    parts = [path.split(".") for path in paths]
    return {
        path: ".".join([of_path[0], *(part for part in of_path[1:] if part not in _OF_LISTS)])
        for path, of_path in zip(paths, parts, strict=True)
        if of_path[0] in REGION_TABLE_SCHEMA.names
    }
