"""COCO-style captions JSON: images, and one annotation per region with its mask and captions.

    {"images":      [{"id": 1, "file_name": "…/sa_1.jpg", "height": 1500, "width": 2250, "image_id": "sa_1", …}, …],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "caption": "the red cup …",
                      "segmentation": {"size": …, "counts": "…"}, "area": …, "bbox": …, "region_id": "7", …}, …],
     "categories":  [{"id": 1, "name": "region"}]}

COCO's tools read it and ignore the extra keys: those of ureca.corpus.formats.records, and an image's provenance and
notes. Any COCO file can be read, with or without these; crowds are skipped. Source: cocodataset.org, "Data format".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from ureca.corpus.formats.image_names import ImageNames, image_extras, with_extras
from ureca.corpus.formats.records import need, region_records, with_regions
from ureca.corpus.schema import ImageRow
from ureca.errors import InputError
from ureca.storage import files as io

CATEGORY = {"id": 1, "name": "region", "supercategory": "region"}


def write_coco(rows: Callable[[], Iterable[ImageRow]], path: str, images: str | None = None) -> None:
    """Write the rows that `rows` returns; it is called twice, so that rows need not be kept.

    Raises:
        InputError: an image outside the folder `images`.
        StorageError: the file can't be written.
    """
    names = ImageNames(path, images)
    with io.open_output(path) as file:
        file.write(b'{"info": {"description": "Captions of regions"}, "licenses": [],\n')
        file.write(f'"categories": [{io.to_json(CATEGORY)}],\n"images": ['.encode())
        _write_items(file, (_image(number, row, names) for number, row in enumerate(rows(), start=1)))
        file.write(b'],\n"annotations": [')
        _write_items(file, _annotations(rows()))
        file.write(b"]}\n")


def read_coco(path: str, images: str | None = None) -> Iterator[ImageRow]:
    """Yield the rows of a file, which is held in memory.

    Raises:
        InputError: names annotation or image and key: not JSON, a key missing or wrong, an unknown image.
        MaskError: a mask that is damaged, empty, or of another size than its image.
    """
    names = ImageNames(path, images)
    content = io.read_json(path)
    of_image: dict[Any, list[int]] = {}
    for number, image in enumerate(_list(content, "images", path)):
        image_number = need(image, "id", f"{path}: images[{number}]")
        if image_number in of_image:
            raise InputError(f"{path}: images[{number}]: id {image_number} is taken by another image.")
        of_image[image_number] = []
    annotations = _list(content, "annotations", path)
    for index, annotation in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        image_number = need(annotation, "image_id", where)
        if image_number not in of_image:
            raise InputError(f"{where}: key 'image_id': no image has id {image_number!r}.")
        if not annotation.get("iscrowd"):
            of_image[image_number].append(index)
    seen: set[str] = set()
    for number, image in enumerate(content["images"]):
        where = f"{path}: images[{number}]"
        row = _bare_row(image, names, where)
        if row.image_id in seen:
            raise InputError(f"{where}: image {row.image_id!r} is repeated. Give each image a unique 'image_id'.")
        seen.add(row.image_id)
        indices = of_image[image["id"]]
        records = [{"region_id": annotations[index].get("id"), **annotations[index]} for index in indices]
        yield with_regions(row, records, [f"{path}: annotations[{index}]" for index in indices])


def _write_items(file: IO[bytes], items: Iterable[Mapping[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write(((",\n" if number else "\n") + io.to_json(item)).encode())


def _image(number: int, row: ImageRow, names: ImageNames) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": names.name(row),
        "height": row.height,
        "width": row.width,
        "image_id": row.image_id,
        **image_extras(row),
    }


def _annotations(rows: Iterable[ImageRow]) -> Iterator[dict[str, Any]]:
    annotation_number = 0
    for number, row in enumerate(rows, start=1):
        for record in region_records(row):
            annotation_number += 1
            yield {"id": annotation_number, "image_id": number, "category_id": CATEGORY["id"], "iscrowd": 0, **record}


def _bare_row(image: Mapping[str, Any], names: ImageNames, where: str) -> ImageRow:
    """Return an image's row without regions."""
    file_name = need(image, "file_name", where)
    sizes = [need(image, key, where) for key in ("height", "width")]
    if not isinstance(file_name, str) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InputError(f"{where}: 'file_name' must be a text, 'height' and 'width' must be integers.")
    row = ImageRow(
        image_id=str(image.get("image_id") or names.image_id(file_name)),
        image_path=names.find(file_name),
        height=sizes[0],
        width=sizes[1],
        status="unlabeled",
    )
    return with_extras(row, image, where)


def _list(content: Any, key: str, path: str) -> list[Any]:
    value = need(content, key, path)
    if not isinstance(value, list):
        raise InputError(f"{path}: key {key!r} is not a list. Use COCO's format: images, annotations, categories.")
    return value
