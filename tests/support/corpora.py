"""Small corpora on disk, for tests that read them."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ureca.regions.rle import encode_mask

SIZE = (12, 16)
"""(height, width) of the photos."""


def square(top: int = 2, left: int = 3, side: int = 6) -> np.ndarray:
    """bool (12, 16), a square set."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def encoded(image: Image.Image | np.ndarray, format_: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format_, **options)
    return stream.getvalue()


def photo(size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 (height, width, 3); no two pixels of a small one alike."""
    return np.arange(size[0] * size[1] * 3, dtype=np.uint64).astype(np.uint8).reshape(*size, 3)


def write(path: Path, data: bytes | str | np.ndarray | dict[str, Any] | list[Any]) -> Path:
    """Write bytes, text, an image, or JSON, making the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, np.ndarray):
        format_ = "PNG" if path.suffix.lower() == ".png" else "JPEG"
        data = encoded(data, format_)
    elif isinstance(data, dict | list):
        data = json.dumps(data)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def sa1b_record(num_masks: int = 2, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """A record in SA-1B's form with masks "1", "2", …, all of them the same square."""
    return {
        "image": {"image_id": 1, "height": size[0], "width": size[1], "file_name": "photo"},
        "annotations": [{"id": number, "segmentation": encode_mask(square())} for number in range(1, num_masks + 1)],
    }


def write_photo(folder: Path, name: str, num_masks: int | None = 2, suffix: str = ".png") -> Path:
    """A photo of 12x16 pixels; with a JSON of masks "1", "2", … next to it unless `num_masks` is None."""
    path = write(folder / f"{name}{suffix}", photo())
    if num_masks is not None:
        write(path.with_suffix(".json"), sa1b_record(num_masks))
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """An uncompressed tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_coco(folder: Path, annotations: list[dict[str, Any]], num_images: int = 2, **more: Any) -> Path:
    """COCO's layout: annotations/instances_val2017.json and val2017/000000000001.jpg, …"""
    images = [
        {"id": number, "file_name": f"{number:012}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for number in range(1, num_images + 1)
    ]
    for image in images:
        write(folder / "val2017" / str(image["file_name"]), photo())
    record = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": [], **more}
    return write(folder / "annotations" / "instances_val2017.json", record)
