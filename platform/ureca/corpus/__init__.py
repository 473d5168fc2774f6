"""Corpora: the region table, and readers of images with masks. pyarrow and Pillow; no torch, no Ray."""

from ureca.corpus.schema import (
    REGION_TABLE_SCHEMA,
    SCHEMA_VERSION,
    Distractor,
    ImageRow,
    Provenance,
    RegionRow,
    RowError,
)
from ureca.corpus.table import (
    canonical_digest,
    iter_images,
    load_image,
    read_regions,
    rows_to_table,
    write_regions,
)

__all__ = [
    "REGION_TABLE_SCHEMA",
    "SCHEMA_VERSION",
    "Distractor",
    "ImageRow",
    "Provenance",
    "RegionRow",
    "RowError",
    "canonical_digest",
    "iter_images",
    "load_image",
    "read_regions",
    "rows_to_table",
    "write_regions",
]
