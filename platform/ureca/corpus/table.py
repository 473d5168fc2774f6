"""Read and write the region table, image by image.

A table is one parquet file or a folder of them (as Ray Data writes). Row groups are small, so reading holds a few
images at a time for any table size.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ureca.corpus.images import PIXEL_LIMIT, decode_image
from ureca.corpus.schema import (
    ADDED_COLUMNS,
    READABLE_VERSIONS,
    REGION_TABLE_SCHEMA,
    SCHEMA_VERSION,
    SCHEMA_VERSION_KEY,
    ImageRow,
)
from ureca.errors import ImageError, InputError
from ureca.storage import files as io

ROWS_PER_GROUP = 16
"""Images per row group: about 10 MB of SA-1B photos with their bytes."""


def rows_to_table(rows: Iterable[ImageRow]) -> pa.Table:
    """Convert rows to an Arrow table with the region table's schema."""
    return pa.Table.from_pylist([row.to_record() for row in rows], schema=REGION_TABLE_SCHEMA)


def write_regions(path: str | os.PathLike[str], rows: Iterable[ImageRow], *, in_order: bool = False) -> int:
    """Write rows to one parquet file; return their number.

    `in_order`: rows are sorted by image id, so repeated ids are found without remembering all.

    The file appears, or replaces an older one, only when it is complete.

    Raises:
        InputError: two rows have the same image id.
        StorageError: the disk is full, or S3 refuses or does not answer.
    """
    target = os.fspath(path)
    seen: set[str] = set()
    num_rows, last = 0, ""
    with io.open_output(target) as file, pq.ParquetWriter(file, REGION_TABLE_SCHEMA, compression="zstd") as writer:
        remaining = iter(rows)
        while group := list(islice(remaining, ROWS_PER_GROUP)):
            for row in group:
                if row.image_id in seen or (in_order and num_rows and row.image_id <= last):
                    raise InputError(
                        f"{target}: image id {row.image_id!r} is repeated. Image ids must be unique in a table."
                    )
                if not in_order:
                    seen.add(row.image_id)
                num_rows, last = num_rows + 1, row.image_id
            writer.write_table(rows_to_table(group), row_group_size=ROWS_PER_GROUP)
    return num_rows


def read_regions(path: str | os.PathLike[str]) -> pa.Table:
    """Read an entire region table (a parquet file or a folder of them), rows in file order.

    Raises:
        InputError: missing, another kind of table, or another version.
    """
    return pa.Table.from_batches(iter_batches(path), schema=REGION_TABLE_SCHEMA)


def iter_images(path: str | os.PathLike[str]) -> Iterator[ImageRow]:
    """Yield the rows of a region table, holding one row group at a time.

    Raises:
        InputError: like `read_regions`; or an inconsistent row.
    """
    for batch in iter_batches(path):
        for record in batch.to_pylist():
            yield ImageRow.from_record(record)


def iter_batches(path: str | os.PathLike[str]) -> Iterator[pa.RecordBatch]:
    """Yield record batches with the region table's schema, at most one row group each. Raises like `read_regions`."""
    source = os.fspath(path)
    files = io.list_files(source, ".parquet")
    if not files:
        raise InputError(f"{source}: no parquet file in it. Name a region table, written by jobs/label_corpus.py.")
    for file_path in files:
        with io.open_input(file_path) as stream:
            parquet = open_parquet(stream, file_path)
            columns = check_schema(parquet.schema_arrow, file_path)
            for batch in parquet.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns):
                yield as_region_batch(batch, file_path)


def open_parquet(stream: Any, file_path: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open the parquet file in a stream; `metadata` is its footer, if already read.

    Raises:
        InputError: not a parquet file.
    """
    try:
        return pq.ParquetFile(stream, metadata=metadata)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{file_path}: not readable as parquet ({error}). Copy it again, or rerun the job that wrote it."
        ) from error


def load_image(row: ImageRow) -> np.ndarray:
    """Load the pixels of a row's image: uint8 (H, W, 3), RGB, with the row's height and width.

    Raises:
        ImageError: the file is missing, truncated, or differs from the row's size, stored and rotated.
    """
    if row.image_bytes is not None:
        data, where = row.image_bytes, f"image {row.image_id!r}"
    elif row.image_path is not None:
        where = row.image_path
        try:
            data = io.read_bytes(row.image_path)
        except InputError as error:
            raise ImageError(f"image {row.image_id!r}: {error}") from error
    else:
        raise ImageError(
            f"image {row.image_id!r} has neither bytes nor a path in its table. Rewrite the table with one of them."
        )
    return decode_image(data, where=where, size=row.size, max_pixels=PIXEL_LIMIT)


def canonical_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a region table's content, independent of row order, file boundaries and times.

    Holds a digest per row only if the rows are not sorted by id.

    Raises:
        InputError: like `read_regions`; or a repeated image id.
    """
    whole, last, is_sorted = hashlib.sha256(), None, True
    for row in iter_images(path):
        is_sorted = last is None or last < row.image_id
        if not is_sorted:
            break
        whole.update(_row_digest(row))
        last = row.image_id
    if is_sorted:
        return whole.hexdigest()
    digests: dict[str, bytes] = {}
    for row in iter_images(path):
        if row.image_id in digests:
            raise InputError(f"{os.fspath(path)}: image id {row.image_id!r} is repeated. Remove one of the two rows.")
        digests[row.image_id] = _row_digest(row)
    return hashlib.sha256(b"".join(digests[image_id] for image_id in sorted(digests))).hexdigest()


def _row_digest(row: ImageRow) -> bytes:
    record = row.to_record()
    if row.image_bytes is not None:
        record["image"]["bytes"] = hashlib.sha256(row.image_bytes).hexdigest()
    if record["provenance"] is not None:
        del record["provenance"]["seconds"], record["provenance"]["describer_seconds"]
    for region in record["regions"]:
        region["attributes"] = region["attributes"] and sorted(region["attributes"])
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()


def check_schema(schema: pa.Schema, file_path: str) -> list[str]:
    """Return the table's columns, if the file has all of them; other columns are ignored.

    Raises:
        InputError: a column is missing, or the table's version is unknown to this package.
    """
    version = (schema.metadata or {}).get(SCHEMA_VERSION_KEY)
    if version is not None and version.decode() not in map(str, READABLE_VERSIONS):
        raise InputError(
            f"{file_path}: region table of version {version.decode()}; this package reads up to version "
            f"{SCHEMA_VERSION}. Use the package that wrote it, or label again."
        )
    missing = [name for name in REGION_TABLE_SCHEMA.names if name not in (*schema.names, *ADDED_COLUMNS)]
    if missing:
        raise InputError(
            f"{file_path}: not a region table: column {', '.join(missing)} missing, found {', '.join(schema.names)}. "
            "Name a table written by jobs/label_corpus.py or ureca.corpus.table.write_regions."
        )
    return [name for name in REGION_TABLE_SCHEMA.names if name in schema.names]


def as_region_batch(batch: pa.RecordBatch, file_path: str) -> pa.RecordBatch:
    """Cast a file's batch to the region table's schema.

    Raises:
        InputError: a column has another type.
    """
    for name in ADDED_COLUMNS:
        if name not in batch.schema.names:
            batch = batch.append_column(name, pa.nulls(len(batch), REGION_TABLE_SCHEMA.field(name).type))
    batch = batch.select(REGION_TABLE_SCHEMA.names)
    if batch.schema.equals(REGION_TABLE_SCHEMA):
        return batch.replace_schema_metadata(REGION_TABLE_SCHEMA.metadata)
    # other writers store large strings, or an all-null column without a type
    try:
        return batch.cast(REGION_TABLE_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueError) as error:
        raise InputError(
            f"{file_path}: a column's type differs from the region table's ({error}). Write it with "
            "ureca.corpus.schema.REGION_TABLE_SCHEMA."
        ) from error
