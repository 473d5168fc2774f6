"""JSONL of (image, RLE, caption): one line per region, the lines of an image together.

    {"image": "photos/sa_1.jpg", "image_id": "sa_1", "region_id": "7", "caption": "the red cup …",
     "segmentation": {"size": [1500, 2250], "counts": "…"}, "parent_id": "3", …}

Reading requires `image` and `segmentation`, and usually `caption`; other keys are those of
ureca.corpus.formats.records.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ureca.corpus.formats.image_names import ImageNames
from ureca.corpus.formats.records import need, region_records, with_regions
from ureca.corpus.schema import ImageRow
from ureca.errors import InputError
from ureca.storage import files as io

Line = tuple[str, dict[str, Any]]


def write_jsonl(rows: Callable[[], Iterable[ImageRow]], path: str, images: str | None = None) -> None:
    """Write the regions of the rows that `rows` returns.

    Raises:
        InputError: an image outside the folder `images`.
        StorageError: the file can't be written.
    """
    names = ImageNames(path, images)
    with io.open_output(path) as file:
        for row in rows():
            head = {"image": names.name(row), "image_id": row.image_id}
            for record in region_records(row):
                file.write((io.to_json({**head, **record}) + "\n").encode())


def read_jsonl(path: str, images: str | None = None) -> Iterator[ImageRow]:
    """Yield the rows of a file, holding one image's lines at a time.

    Raises:
        InputError: names line and key: not JSON, a key missing or wrong, an image whose lines are not together.
        MaskError: a mask that is damaged, empty, or of another size than the image's others.
    """
    names = ImageNames(path, images)
    seen: set[str] = set()

    def image_of(line: Line) -> str:
        return str(need(line[1], "image", line[0]))

    for name, lines in itertools.groupby(iter_json_lines(path), key=image_of):
        where, records = zip(*lines, strict=True)
        image_id = str(records[0].get("image_id") or names.image_id(name))
        if image_id in seen:
            raise InputError(
                f"{where[0]}: image {image_id!r} appears again after another. Sort the file so that the lines of an "
                "image are together."
            )
        seen.add(image_id)
        height, width = _size(records[0], where[0])
        row = ImageRow(image_id=image_id, image_path=names.find(name), height=height, width=width, status="unlabeled")
        yield with_regions(row, records, where)


def iter_json_lines(path: str) -> Iterator[Line]:
    """Yield (name of the line, object) for every line that is not blank.

    Raises:
        InputError: the file is missing, or a line is not a JSON object.
    """
    with io.open_input(path) as file:
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}: not JSON ({error}). It may be truncated: {len(line)} bytes.") from error
            if not isinstance(record, dict):
                raise InputError(f"{where}: not a JSON object, {{…}}, but {line[:40].decode(errors='replace')}")
            yield where, record


def _lines(file: Any) -> Iterator[bytes]:
    rest = b""
    while piece := file.read(1 << 20):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _size(record: dict[str, Any], where: str) -> tuple[int, int]:
    segmentation = need(record, "segmentation", where)
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(each, int) for each in size):
        raise InputError(
            f"{where}: key 'segmentation' is no RLE. "
            'Give {"size": [height, width], "counts": …}, COCO\'s form; polygons must be converted first.'
        )
    return size[0], size[1]
