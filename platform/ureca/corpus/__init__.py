"""Corpora: the region table, and readers of images with masks. pyarrow and Pillow; no torch, no Ray."""

from pathlib import Path

from ureca.corpus.images import decode_image
from ureca.corpus.manifest import (
    MANIFEST_SCHEMA,
    ManifestRow,
    ManifestSummary,
    SourceSummary,
    iter_image_ids,
    iter_manifest,
)
from ureca.corpus.read import LoadedImage, ReadLimits, read_row, read_sa1b
from ureca.corpus.schema import (
    REGION_TABLE_SCHEMA,
    SCHEMA_VERSION,
    Distractor,
    ImageRow,
    Provenance,
    RegionRow,
    RowError,
)
from ureca.corpus.sources import write_manifest
from ureca.corpus.split import Split, split_heldout
from ureca.corpus.table import (
    canonical_digest,
    iter_images,
    load_image,
    read_regions,
    rows_to_table,
    write_regions,
)

__all__ = [
    "MANIFEST_SCHEMA",
    "REGION_TABLE_SCHEMA",
    "SCHEMA_VERSION",
    "Distractor",
    "ImageRow",
    "LoadedImage",
    "ManifestRow",
    "ManifestSummary",
    "Provenance",
    "ReadLimits",
    "RegionRow",
    "RowError",
    "SourceSummary",
    "Split",
    "canonical_digest",
    "decode_image",
    "iter_image_ids",
    "iter_images",
    "iter_manifest",
    "load_image",
    "photos_directory",
    "read_regions",
    "read_row",
    "read_sa1b",
    "rows_to_table",
    "split_heldout",
    "write_manifest",
    "write_regions",
]


def photos_directory() -> Path:
    """The folder of six free photos with nested masks that comes with the package (see its LICENSES.md)."""
    return Path(__file__).parent / "photos"
