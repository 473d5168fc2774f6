"""Read one image and its masks, given its manifest row."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ureca.corpus.images import DEFAULT_MAX_PIXELS, check_max_pixels, decode_image, image_sizes
from ureca.corpus.masks import (
    annotations_of,
    check_png_size,
    frame_of,
    masks_of_annotations,
    masks_of_id_map,
    masks_of_pngs,
    read_id_map,
)
from ureca.corpus.schema import RegionRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.corpus.sources.region_table import check_not_quarantined, regions_of_record
from ureca.errors import ImageError, InputError
from ureca.regions.rle import Size
from ureca.regions.tree import Mask
from ureca.storage import files as io


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """Limits of images and masks."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    """Maximum pixels of a photo or mask file; larger files are quarantined before decoding."""

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """An image in memory, with its masks."""

    data: bytes
    """The encoded file."""
    image: np.ndarray
    """uint8 (H, W, 3), RGB."""
    size: Size
    """(height, width) of `image` and of every mask. `decode_image(data, size=size)` reproduces `image`."""
    masks: list[Mask]
    """Non-empty masks with unique ids."""
    notes: Counter[str] = field(default_factory=Counter)
    """Repairs and their counts, named as in ureca.corpus.masks."""
    regions: tuple[RegionRow, ...] | None = None
    """Regions of a region table's image, in their tree; None before a tree is built."""


def read_row(row: ManifestRow, limits: ReadLimits | None = None) -> LoadedImage:
    """Read a row's photo and masks; check every pixel and mask.

    Raises:
        ImageError: the photo is missing, truncated, too large, or does not match its masks' size.
        InputError: the masks' file is missing or has another format.
        MaskSizeError: masks of another size than the photo.
        MaskError: a damaged mask.
        StorageError: S3 refuses or does not answer; the image is not at fault.
    """
    limits = limits or ReadLimits()
    table_row = _record(row) if row.masks_kind == "regions" else None
    if table_row is not None:
        check_not_quarantined(table_row, where=_masks_path(row))
    try:
        data = io.read_bytes(row.image_path)
    except InputError as error:
        of_masks = f" It is the photo of {row.masks_path}." if row.masks_path is not None else ""
        raise ImageError(f"{error}{of_masks}") from error
    sizes = image_sizes(data, where=row.image_path, max_pixels=limits.max_pixels)
    notes: Counter[str] = Counter()
    size: Size | None = sizes.rotated
    ids = record = None
    if row.masks_kind == "record":
        record, size = annotations_of(_record(row), where=_masks_path(row))
        size = frame_of(record, size, sizes, where=_masks_path(row))
    elif table_row is not None:
        size = (table_row["height"], table_row["width"])
    elif row.masks_kind == "id_map":
        map_data = io.read_bytes(_masks_path(row))
        ids, has_palette = read_id_map(map_data, where=_masks_path(row), max_pixels=limits.max_pixels)
        size = ids.shape
        if size not in sizes:
            check_png_size(size, sizes.stored, where=_masks_path(row))
    elif row.masks_kind == "pngs":
        files = [(_region_id(path, row), path, io.read_bytes(path)) for path in row.mask_files]
        first = image_sizes(files[0][2], where=files[0][1], max_pixels=limits.max_pixels).stored
        size = first if first in sizes else sizes.stored
    image = decode_image(data, where=row.image_path, size=size, max_pixels=limits.max_pixels)
    size = (image.shape[0], image.shape[1])
    notes["exif_rotated"] += size != sizes.stored
    masks: list[Mask] = []
    regions: tuple[RegionRow, ...] | None = None
    if table_row is not None:
        masks, regions = regions_of_record(table_row, where=_masks_path(row))
    elif record is not None:
        masks = masks_of_annotations(record, size, where=_masks_path(row), notes=notes)
    elif ids is not None:
        masks = masks_of_id_map(
            ids, wanted=_wanted(row, notes), has_palette=has_palette, where=_masks_path(row), notes=notes
        )
    elif row.masks_kind == "pngs":
        masks = masks_of_pngs(files, size, max_pixels=limits.max_pixels, notes=notes)
    return LoadedImage(data=data, image=image, size=size, masks=masks, notes=+notes, regions=regions)


def read_sa1b(image_path: str | os.PathLike[str], masks_path: str | os.PathLike[str] | None) -> LoadedImage:
    """Read a photo and its masks in SA-1B's format; without `masks_path` there are no masks. Raises like `read_row`."""
    return read_row(
        ManifestRow(
            image_id=PurePosixPath(image_path).stem,
            image_path=os.fspath(image_path),
            masks_path=None if masks_path is None else os.fspath(masks_path),
            masks_kind=None if masks_path is None else "record",
        )
    )


def _masks_path(row: ManifestRow) -> str:
    assert row.masks_path is not None, row
    return row.masks_path


def _record(row: ManifestRow) -> Any:
    return io.read_json(_masks_path(row)) if row.record is None else json.loads(row.record)


def _wanted(row: ManifestRow, notes: Counter[str]) -> list[str] | None:
    """Return the segment ids of a panoptic image; None if every value of its map is a segment."""
    if row.record is None:
        return None
    segments, _ = annotations_of(json.loads(row.record), where=_masks_path(row))
    notes["crowds"] += sum(bool(segment.get("iscrowd")) for segment in segments)
    return [str(segment["id"]) for segment in segments if not segment.get("iscrowd")]


def _region_id(path: str, row: ManifestRow) -> str:
    """Return a mask file's name without the part shared with its photo: 3 for NAME/3.png and NAME_3.png."""
    stem = PurePosixPath(io.file_name(path)).stem
    return stem.removeprefix(f"{PurePosixPath(row.image_id).name}_")


def photos_directory() -> Path:
    """Return the folder of six free photos with nested masks that ships in the package (see its LICENSES.md)."""
    return Path(__file__).parent / "photos"
