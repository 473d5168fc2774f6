"""Folder for Hugging Face's `datasets`, images included: `load_dataset("FOLDER", split="train")`.

    FOLDER/README.md                 dataset card: content, columns and types
    FOLDER/data/train-00000.parquet  one row per image; `image` is decoded to a PIL image

Columns: image, image_id, height, width, regions (a list of the records of ureca.corpus.formats.records, with
`attributes` as a list of name and value), provenance and notes (JSON). Each file's metadata has the types too, so that
it can be loaded alone. Source: huggingface/datasets, src/datasets/features/features.py (`generate_from_dict`,
`_from_yaml_list`).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ureca.corpus.formats.image_names import image_extras, with_extras
from ureca.corpus.formats.records import region_records, with_regions
from ureca.corpus.schema import ImageRow
from ureca.errors import InputError
from ureca.storage import files as io

BYTES_PER_FILE = 400 * 2**20
"""Approximate file size; the hub's tools split at 500 MB."""
ROWS_PER_GROUP = 16
"""Images per row group: about 10 MB of SA-1B photos with their bytes."""

_DISTRACTOR = pa.struct([("region_id", pa.string()), ("similarity", pa.float32()), ("told_apart_by", pa.string())])
_REGION = pa.struct(
    [
        ("region_id", pa.string()),
        ("caption", pa.string()),
        ("short_caption", pa.string()),
        ("long_caption", pa.string()),
        ("segmentation", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.float32())),
        ("parent_id", pa.string()),
        ("depth", pa.int32()),
        ("merged_ids", pa.list_(pa.string())),
        ("distractors", pa.list_(_DISTRACTOR)),
        ("uniqueness", pa.float32()),
        ("flags", pa.list_(pa.string())),
        ("attributes", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
    ]
)
_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("regions", pa.list_(_REGION)),
        ("provenance", pa.string()),
        ("notes", pa.string()),
    ]
)
_KINDS = {"image_id": str, "height": int, "width": int, "regions": list}
_NEEDED = ("image", *_KINDS)


def write_datasets(rows: Callable[[], Iterable[ImageRow]], folder: str, images: str | None = None) -> None:
    """Write rows with their images into a folder without data.

    Raises:
        InputError: the folder has data, or an image can't be read.
        StorageError: a file can't be written.
    """
    del images  # images are embedded
    if io.exists(f"{folder}/data"):
        raise InputError(f"{folder}: holds a dataset already. Delete it, or name another folder.")
    schema = _SCHEMA.with_metadata({b"huggingface": json.dumps({"info": {"features": _features()}}).encode()})
    records = map(_record, rows())
    number = num_images = num_regions = 0
    while group := list(islice(records, ROWS_PER_GROUP)):
        path = f"{folder}/data/train-{number:05}.parquet"
        with io.open_output(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            num_bytes = 0
            while group:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                num_images += len(group)
                num_regions += sum(len(record["regions"]) for record in group)
                num_bytes += sum(len(record["image"]["bytes"]) for record in group)
                group = list(islice(records, ROWS_PER_GROUP)) if num_bytes < BYTES_PER_FILE else []
        number += 1
    io.write_bytes(f"{folder}/README.md", _card(num_images, num_regions).encode())


def read_datasets(folder: str, images: str | None = None) -> Iterator[ImageRow]:
    """Yield the rows of a folder or of one of its files, images included, holding one row group at a time.

    Raises:
        InputError: names file, row and key: not parquet, a column missing, a value of another type.
        MaskError: a mask that is damaged, empty, or of another size than its image.
    """
    del images
    for path in io.list_files(f"{folder}/data" if io.exists(f"{folder}/data") else folder, ".parquet"):
        with io.open_input(path) as file:
            for number, record in enumerate(_records(file, path)):
                yield _row(record, f"{path} row {number}")


def _record(row: ImageRow) -> dict[str, Any]:
    if row.image_bytes is None and row.image_path is None:
        raise InputError(f"image {row.image_id!r} has neither bytes nor a path in its table. Label it again.")
    data = row.image_bytes if row.image_bytes is not None else io.read_bytes(row.image_path or "")
    extras = image_extras(row)
    return {
        "image": {"bytes": data, "path": io.file_name(row.image_path or row.image_id)},
        "image_id": row.image_id,
        "height": row.height,
        "width": row.width,
        "regions": [
            {**record, "attributes": record["attributes"] and _named(record["attributes"])}
            for record in region_records(row)
        ],
        "provenance": extras["provenance"] and io.to_json(extras["provenance"]),
        "notes": io.to_json(extras["notes"]),
    }


def _named(attributes: dict[str, str]) -> list[dict[str, str]]:
    """`datasets` has no map type."""
    return [{"name": name, "value": value} for name, value in attributes.items()]


def _records(file: IO[bytes], path: str) -> Iterator[dict[str, Any]]:
    try:
        parquet = pq.ParquetFile(file)
        if missing := [name for name in _NEEDED if name not in parquet.schema_arrow.names]:
            raise InputError(
                f"{path}: column {', '.join(missing)} missing, found {', '.join(parquet.schema_arrow.names)}. Use a "
                "folder written by `ureca convert`."
            )
        columns = [name for name in _SCHEMA.names if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not readable as parquet ({error}). Copy it again.") from error


def _row(record: dict[str, Any], where: str) -> ImageRow:
    if not isinstance(record["image"], dict) or not isinstance(record["image"].get("bytes"), bytes):
        raise InputError(f"{where}: column 'image' holds no image file. Use a folder written by `ureca convert`.")
    if not all(isinstance(record[key], kind) for key, kind in _KINDS.items()):
        raise InputError(f"{where}: 'image_id' must be a text, 'height' and 'width' integers, and 'regions' a list.")
    row = ImageRow(
        image_id=record["image_id"],
        image_bytes=record["image"]["bytes"],
        height=record["height"],
        width=record["width"],
        status="unlabeled",
    )
    extras = {}
    for key in ("provenance", "notes"):
        try:
            extras[key] = json.loads(record.get(key) or "null")
        except ValueError as error:
            raise InputError(f"{where}: column {key!r} is not JSON ({error}).") from error
    regions = [
        {**region, "attributes": _attributes(region)} if region.get("attributes") is not None else region
        for region in record["regions"]
    ]
    names = [f"{where}: regions[{index}]" for index in range(len(regions))]
    return with_regions(with_extras(row, extras, where), regions, names)


def _attributes(region: dict[str, Any]) -> dict[str, str]:
    return {pair["name"]: pair["value"] for pair in region["attributes"]}


def _features() -> dict[str, Any]:
    """Return the column types in `datasets`' JSON form."""

    def feature(kind: pa.DataType) -> Any:
        if pa.types.is_struct(kind):
            return {field.name: feature(field.type) for field in kind}
        if pa.types.is_list(kind):
            # a list of one: read by all versions, unlike the classes Sequence (older) and List (newer)
            return [feature(kind.value_type)]
        return {"dtype": _dtype(kind), "_type": "Value"}

    return {**{field.name: feature(field.type) for field in _SCHEMA}, "image": {"_type": "Image"}}


def _yaml_features() -> list[dict[str, Any]]:
    """Return the column types in a card's YAML form."""

    def feature(kind: pa.DataType) -> Any:
        if pa.types.is_struct(kind):
            return {"struct": named(kind)}
        if pa.types.is_list(kind):
            value = kind.value_type
            return {"list": named(value) if pa.types.is_struct(value) else _dtype(value)}
        return {"dtype": _dtype(kind)}

    def named(fields: Iterable[pa.Field]) -> list[dict[str, Any]]:
        return [
            {"name": field.name, **({"dtype": "image"} if field.name == "image" else feature(field.type))}
            for field in fields
        ]

    return named(_SCHEMA)


def _dtype(kind: pa.DataType) -> str:
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _card(num_images: int, num_regions: int) -> str:
    head = yaml.safe_dump(
        {
            "pretty_name": "Captions of regions",
            "task_categories": ["image-to-text"],
            "tags": ["region-captioning", "segmentation"],
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
            "dataset_info": {"features": _yaml_features()},
        },
        sort_keys=False,
    )
    return f"""---
{head}---
# Captions of regions

{num_images:,} images, {num_regions:,} regions. Every region has a mask and, once labeled, three captions: `caption`
fits it alone among the regions of its image, `short_caption` says what it is, `long_caption` also what its parts are.

    from datasets import load_dataset
    from pycocotools import mask

    row = load_dataset("FOLDER", split="train")[0]
    region = row["regions"][0]
    print(region["caption"], mask.decode(region["segmentation"]).shape, row["image"].size)

`segmentation` is COCO's run-length encoding of size [height, width]; `parent_id` names the region that a region is part
of. The images are the files they were labeled from, under the licenses that those have.
"""
