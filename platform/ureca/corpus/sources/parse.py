"""Sources of a corpus; their kind is detected from their content.

FOLDER                           photos in all subfolders, with or without masks; tar shards
FOLDER:masks=FOLDER              the same, with the masks in a separate folder tree
SHARD.tar                        photos with NAME.json next to them, as SA-1B is distributed
ANNOTATIONS.json                 COCO or LVIS instances, or COCO panoptic
ANNOTATIONS.json:images=FOLDER   the same, with photos in an unusual place
     … :masks=FOLDER             and panoptic PNGs in an unusual place
TABLE.parquet                    a region table, with its regions
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from ureca.corpus.sources.coco import add_coco
from ureca.corpus.sources.folder import add_photos
from ureca.corpus.sources.manifest import (
    MANIFEST_SCHEMA,
    ROWS_PER_GROUP,
    ManifestSummary,
    Scratch,
    SourceSummary,
    scratch,
)
from ureca.corpus.sources.region_table import add_table
from ureca.errors import InputError
from ureca.storage import files as io

_EXTRA = re.compile(r":(?P<name>\w+)=")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One parsed source."""

    path: str
    images: str | None = None
    masks: str | None = None


def write_manifest(sources: Sequence[str | os.PathLike[str]], out_parquet: str | os.PathLike[str]) -> ManifestSummary:
    """List the images of all sources (local or s3://) in one parquet table, sorted by image id.

    Local paths are stored absolute. On failure the previous `out_parquet` is unchanged.

    Raises:
        InputError: a source without images or of unknown kind, or one image id from two files.
        StorageError: S3 refuses or does not answer, or a disk is full.
    """
    with scratch() as rows:
        summaries = tuple(_add_source(os.fspath(source), rows) for source in sources)
        with io.open_output(out_parquet) as file, pq.ParquetWriter(file, MANIFEST_SCHEMA, compression="zstd") as writer:
            for table in rows.tables():
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    return ManifestSummary(sources=summaries)


def parse_source(text: str) -> Source:
    """Parse a source.

    Raises:
        InputError: unknown options.
    """
    path, *extras = _EXTRA.split(text)
    named = dict(zip(extras[::2], extras[1::2], strict=True))
    if unknown := set(named) - {"images", "masks"}:
        raise InputError(
            f"{text}: {min(unknown)}= is unknown. Use PATH, PATH:images=FOLDER, PATH:masks=FOLDER, or both."
        )
    return Source(path=path, **named)


def _add_source(text: str, rows: Scratch) -> SourceSummary:
    """Add a source's rows; return what was found."""
    source = parse_source(text)
    lower = source.path.lower()
    if lower.endswith(".parquet") and io.exists(source.path):
        if source.images or source.masks:
            raise InputError(
                f"{text}: a region table names its images and holds its masks. Use {source.path} without options."
            )
        summary = add_table(source.path, rows)
    elif io.is_folder(source.path):
        if source.images:
            raise InputError(f"{text}: images= requires an annotation file. Name only the folder of photos.")
        summary = add_photos(source.path, rows, masks=source.masks)
    elif lower.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".zip")):
        raise InputError(f"{source.path}: compressed tars allow no random access. Unpack it to a .tar or a folder.")
    elif lower.endswith(".tar"):
        summary = add_photos(source.path, rows, masks=source.masks)
    elif lower.endswith(".json") and io.exists(source.path):
        summary = add_coco(source.path, rows, images=source.images, masks=source.masks)
    else:
        found = "of no known kind" if io.exists(source.path) else "no such file or folder"
        raise InputError(
            f"{source.path}: {found}. Name a folder of photos, a .tar of photos with JSON files, a COCO annotation "
            "file (.json), or a region table (.parquet)."
        )
    return replace(summary, source=text)
