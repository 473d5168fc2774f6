"""Photos with masks in SA-1B's form: `NAME.jpg` with `NAME.json` beside it.

    NAME.json   {"image": {"image_id", "width", "height", "file_name"},
                 "annotations": [{"id", "segmentation": {"size": [h, w], "counts": "…"}, …}, …]}

A corpus is one or more folders of them, read down to the last subfolder. Its manifest is a parquet table with
a row for every photo and for every mask file whose photo is missing, so that nothing drops out unseen: what
can't be read fails in `read_sa1b`, with an error that names the file, and ends as a quarantined row.
Source of the form: facebookresearch/segment-anything, README, "Dataset".
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ureca import io
from ureca.corpus.images import decode_image
from ureca.errors import ImageError, InputError, MaskError
from ureca.regions.rle import Size, check_rle
from ureca.regions.tree import Mask

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_path", pa.string(), nullable=False),
        ("masks_path", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One image of a corpus."""

    image_id: str
    """Path below the source folder without the suffix, e.g. "sa_000020/sa_223750"; unique in the manifest."""
    image_path: str
    """Where the photo is, or, if only its mask file was found, where it should be."""
    masks_path: str | None
    """None: a plain photo without masks."""


@dataclass(frozen=True, kw_only=True)
class ManifestSummary:
    """What `write_manifest` found."""

    num_images: int
    """Rows written: all of the following together."""
    num_with_masks: int
    num_without_masks: int
    num_without_image: int
    """Mask files whose photo is missing; reading these rows fails."""


class PhotoWithMasks(NamedTuple):
    """What `read_sa1b` returns."""

    data: bytes
    """The encoded image file."""
    size: Size
    """(height, width) as stored, EXIF rotation not applied."""
    masks: list[Mask]


def write_manifest(sources: Sequence[str | os.PathLike[str]], out_parquet: str | os.PathLike[str]) -> ManifestSummary:
    """List the photos and mask files of folders (local or s3://) in one parquet table, sorted by image id.

    Local paths are stored absolute. A JSON file that is not of SA-1B's form and has no photo of its name is
    not a mask file and is passed over.

    Raises:
        InputError: no images in a source, or one image id from two files.
    """
    rows: dict[str, ManifestRow] = {}
    num_without_image = 0
    for source in sources:
        found, num_orphans = _list_source(os.fspath(source))
        num_without_image += num_orphans
        for row in found:
            other = rows.setdefault(row.image_id, row)
            if other is not row:
                raise InputError(
                    f"image id {row.image_id!r} belongs to two files: {other.image_path} and "
                    f"{row.image_path}. "
                    "Rename or remove one; an id is the path below the source folder without the suffix."
                )
    ordered = [rows[image_id] for image_id in sorted(rows)]
    sink = pa.BufferOutputStream()
    # small row groups, so that the readers of a job can share out a corpus of any size
    pq.write_table(
        pa.Table.from_pylist([dict(vars(row)) for row in ordered], schema=MANIFEST_SCHEMA),
        sink,
        row_group_size=1024,
    )
    io.write_bytes(out_parquet, sink.getvalue().to_pybytes())
    num_without_masks = sum(row.masks_path is None for row in ordered)
    return ManifestSummary(
        num_images=len(ordered),
        num_with_masks=len(ordered) - num_without_masks - num_without_image,
        num_without_masks=num_without_masks,
        num_without_image=num_without_image,
    )


def iter_manifest(path: str | os.PathLike[str]) -> Iterator[ManifestRow]:
    """The rows of a manifest that `write_manifest` wrote.

    Raises:
        InputError: the file is missing or no manifest.
    """
    try:
        parquet = pq.ParquetFile(pa.BufferReader(io.read_bytes(path)))
        columns = MANIFEST_SCHEMA.names
        for batch in parquet.iter_batches(columns=columns):
            yield from (ManifestRow(**{name: row[name] for name in columns}) for row in batch.to_pylist())
    except (pa.ArrowInvalid, KeyError) as error:
        raise InputError(
            f"{os.fspath(path)}: not a manifest ({error}). Write one with ureca.corpus.write_manifest."
        ) from error


def read_sa1b(image_path: str | os.PathLike[str], masks_path: str | os.PathLike[str] | None) -> PhotoWithMasks:
    """Read a photo and its masks and check every pixel and mask; without `masks_path` there are no masks.

    Raises:
        ImageError: the photo is missing, truncated, or not of the size its JSON says.
        InputError: the JSON is missing or not of SA-1B's form.
        MaskSizeError: a mask of another size than the photo.
        MaskError: a mask that is empty or no RLE, or a mask id used twice.
    """
    image_path = os.fspath(image_path)
    try:
        data = io.read_bytes(image_path)
    except InputError as error:
        of_masks = f" It is the photo of {os.fspath(masks_path)}." if masks_path is not None else ""
        raise ImageError(f"{error}{of_masks}") from error
    if masks_path is None:
        height, width = decode_image(data, where=image_path).shape[:2]
        return PhotoWithMasks(data, (height, width), [])
    masks_path = os.fspath(masks_path)
    record = io.read_json(masks_path)
    try:
        size = (int(record["image"]["height"]), int(record["image"]["width"]))
        annotations = [(str(item["id"]), item["segmentation"]) for item in record["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{masks_path}: not of SA-1B's form ({type(error).__name__}: {error}). Give "
            '{"image": {"height", "width", …}, "annotations": [{"id", "segmentation", …}, …]}.'
        ) from error
    decode_image(data, where=image_path, size=size)
    masks: dict[str, Mask] = {}
    for region_id, segmentation in annotations:
        if region_id in masks:
            raise MaskError(f"{masks_path}: mask id {region_id!r} occurs twice. Give every mask an id of its own.")
        rle = check_rle(segmentation, size, where=f"{masks_path}: region {region_id!r}")
        masks[region_id] = Mask(region_id, rle)
    return PhotoWithMasks(data, size, list(masks.values()))


def _list_source(source: str) -> tuple[list[ManifestRow], int]:
    """The manifest rows of one folder, and how many of them have no photo.

    Raises:
        InputError: no such folder, or no image in it.
    """
    filesystem, root = io.filesystem(source)
    if filesystem.get_file_info(root).type != fs.FileType.Directory:
        raise InputError(f"{source}: no such folder. Give the folder that holds the photos and their JSON files.")
    prefix = "" if isinstance(filesystem, fs.LocalFileSystem) else "s3://"
    images: list[str] = []
    mask_files: dict[str, str] = {}
    for entry in filesystem.get_file_info(fs.FileSelector(root, recursive=True)):
        below = entry.path[len(root.rstrip("/")) + 1 :]
        if entry.type != fs.FileType.File or any(part.startswith(".") for part in below.split("/")):
            continue
        stem, suffix = os.path.splitext(below)
        if suffix.lower() in IMAGE_SUFFIXES:
            images.append(prefix + entry.path)
        elif suffix.lower() == ".json":
            mask_files[stem] = prefix + entry.path
    start = len(prefix + root.rstrip("/")) + 1
    rows = []
    for path in sorted(images):
        stem = os.path.splitext(path[start:])[0]
        rows.append(ManifestRow(image_id=stem, image_path=path, masks_path=mask_files.get(stem)))
    with_image = {row.image_id for row in rows}
    orphans = [
        ManifestRow(image_id=stem, image_path=os.path.splitext(path)[0] + IMAGE_SUFFIXES[0], masks_path=path)
        for stem, path in sorted(mask_files.items())
        if stem not in with_image and _may_be_mask_file(path)
    ]
    if not rows and not orphans:
        raise InputError(
            f"{source}: no image in it ({', '.join(IMAGE_SUFFIXES)}). "
            "Give the folder that holds the photos and their JSON files."
        )
    return rows + orphans, len(orphans)


def _may_be_mask_file(path: str) -> bool:
    """False only for a JSON file that is whole and of another form (a corpus has others beside its masks)."""
    try:
        record: Any = json.loads(io.read_bytes(path))
    except ValueError:
        return True
    return isinstance(record, dict) and "image" in record and "annotations" in record
