"""Manifest: a parquet table with a row for every image of a corpus, written before a job starts.

A row holds exactly what a worker needs to read its image and masks: paths (for tar members with their offset), and,
from annotation files of many images, this image's annotations. Nothing is dropped silently: unreadable files fail in
`read_row`, with an error that names the file.

Rows are sorted by image id on disk, in SQLite, so a manifest of millions of images needs no more memory than one of
ten.
"""

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from ureca.errors import InputError, StorageError
from ureca.storage import files as io

MasksKind = Literal["record", "id_map", "pngs", "regions"]

ROWS_PER_GROUP = 1024
"""Small row groups, so that the readers of a job can share a corpus of any size."""

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_path", pa.string(), nullable=False),
        ("masks_path", pa.string()),
        ("masks_kind", pa.string()),
        ("mask_files", pa.list_(pa.string())),
        ("record", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One image of a corpus."""

    image_id: str
    """Path below the source without the suffix, e.g. "sa_000020/sa_223750"; unique in the manifest."""
    image_path: str
    """Path of the photo, or, if only its masks were found, its expected path. Read by
    `ureca.storage.files.read_bytes`."""
    masks_path: str | None = None
    """File or folder of its masks; None: a photo without masks."""
    masks_kind: MasksKind | None = None
    """Format of the masks: a record with RLEs, polygons or boxes; one PNG of region ids; PNGs of one region each;
    regions of a region table."""
    mask_files: tuple[str, ...] = ()
    """The files, for pngs."""
    record: str | None = None
    """The image's annotations as JSON, if `masks_path` holds those of many images."""

    def __post_init__(self) -> None:
        assert (self.masks_kind is None) == (self.masks_path is None), self
        assert self.masks_kind in (None, *get_args(MasksKind)), self

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read one row as returned by pyarrow, pandas or Ray Data; other columns are ignored."""
        files = record["mask_files"]
        values = {name: record[name] for name in MANIFEST_SCHEMA.names}
        return cls(**{**values, "mask_files": () if files is None else tuple(files)})


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """Content of one source."""

    source: str
    """The source as given."""
    kind: str
    """Kind: photos, tar shard, COCO instances, COCO panoptic, region table."""
    num_images: int = 0
    """Rows; sum of the following."""
    num_with_masks: int = 0
    num_without_masks: int = 0
    num_without_image: int = 0
    """Masks whose photo is missing; reading these rows fails."""
    skipped: tuple[str, ...] = ()
    """Files that are not part of the corpus, in words."""

    def __str__(self) -> str:
        counts = [f"{self.num_images:,} images"]
        if self.num_without_masks:
            counts.append(f"{self.num_without_masks:,} of them without masks")
        if self.num_without_image:
            counts.append(f"{self.num_without_image:,} of them masks whose photo is missing")
        return "  ".join([f"{self.source}  {self.kind}", *counts, *self.skipped])


@dataclass(frozen=True, kw_only=True)
class ManifestSummary:
    """Result of `write_manifest`."""

    sources: tuple[SourceSummary, ...]

    @property
    def num_images(self) -> int:
        """Number of rows."""
        return sum(source.num_images for source in self.sources)


def same_id(image_id: str, path: str, other: str) -> InputError:
    """Return the error for two files with one image id."""
    return InputError(
        f"image id {image_id!r} belongs to two files: {path} and {other}. Rename or remove one, or label the two "
        "sources into separate tables; an id is the path below the source without the suffix."
    )


class Scratch:
    """Temporary database on the local disk, created by `scratch`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.execute("CREATE TABLE rows (image_id TEXT PRIMARY KEY, image_path TEXT, row TEXT) WITHOUT ROWID")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one SQL statement."""
        return self.connection.execute(statement, values)

    def add(self, row: ManifestRow) -> None:
        """Add a row.

        Raises:
            InputError: another file has the same image id.
        """
        try:
            values = json.dumps(list(vars(row).values()))
            self.execute("INSERT INTO rows VALUES (?, ?, ?)", (row.image_id, row.image_path, values))
        except sqlite3.IntegrityError:
            ((other,),) = self.execute("SELECT image_path FROM rows WHERE image_id = ?", (row.image_id,))
            raise same_id(row.image_id, other, row.image_path) from None

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows sorted by image id, one row group at a time."""
        cursor = self.execute("SELECT row FROM rows ORDER BY image_id")
        while some := cursor.fetchmany(ROWS_PER_GROUP):
            columns = zip(*(json.loads(text) for (text,) in some), strict=True)
            yield pa.table(dict(zip(MANIFEST_SCHEMA.names, map(list, columns), strict=True)), schema=MANIFEST_SCHEMA)


@contextmanager
def scratch() -> Iterator[Scratch]:
    """Provide an empty `Scratch`, and delete it afterwards.

    Raises:
        StorageError: the disk with the temporary folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="ureca-manifest-") as folder:
        connection = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None)
        try:
            # the database is temporary: no journal, no waiting for the disk
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            yield Scratch(connection)
        except sqlite3.OperationalError as error:
            if "full" not in str(error) and "I/O" not in str(error):
                raise
            raise StorageError(
                f"{folder}: can't be written ({error}). The list of images needs about 300 bytes of temporary disk "
                "space per image, plus its annotations; free some, or set TMPDIR to another folder."
            ) from error
        finally:
            connection.close()


def iter_manifest(path: str | os.PathLike[str]) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest, holding one row group at a time.

    Raises:
        InputError: the file is missing or not a manifest.
    """
    for batch in _batches(path, MANIFEST_SCHEMA.names):
        yield from map(ManifestRow.from_record, batch.to_pylist())


def iter_image_ids(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the image ids of a manifest, sorted, reading no other column. Raises like `iter_manifest`."""
    for batch in _batches(path, ["image_id"]):
        yield from batch["image_id"].to_pylist()


def _batches(path: str | os.PathLike[str], columns: list[str]) -> Iterator[pa.RecordBatch]:
    with io.open_input(path) as file:
        try:
            parquet = pq.ParquetFile(file)
            if missing := set(MANIFEST_SCHEMA.names) - set(parquet.schema_arrow.names):
                raise pa.ArrowInvalid(f"column {', '.join(sorted(missing))} missing")
            yield from parquet.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{os.fspath(path)}: not a manifest ({error}). Write one with "
                "ureca.corpus.sources.parse.write_manifest."
            ) from error
