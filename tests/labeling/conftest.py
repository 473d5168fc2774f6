"""Small corpora to label, good and bad."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ureca.nano.scenes.files import write_scenes

NUM_SCENES = 12

BAD_IMAGES = {
    "bad/json_of_other_form": "InputError",
    "bad/json_without_image": "ImageError",
    "bad/photo_without_masks": "InputError",
    "bad/rle_of_other_size": "MaskSizeError",
    "bad/truncated": "ImageError",
}


def spoil(folder: Path) -> None:
    """Write five images to `folder`, each with one fault and named after it."""
    write_scenes(folder, range(500, 505))
    (folder / "ground_truth.jsonl").unlink()
    pairs = sorted(folder.glob("*.jpg"))
    for image_id, photo in zip(sorted(BAD_IMAGES), pairs, strict=True):
        name = image_id.removeprefix("bad/")
        photo.rename(folder / f"{name}.jpg")
        photo.with_suffix(".json").rename(folder / f"{name}.json")

    def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        record = json.loads((folder / f"{name}.json").read_text())
        change(record)
        (folder / f"{name}.json").write_text(json.dumps(record))

    edit("json_of_other_form", lambda record: record.pop("annotations"))
    edit("rle_of_other_size", lambda record: record["annotations"][0].update(
        segmentation={"size": [256, 250], "counts": [0, 256 * 250]}))  # fmt: skip
    (folder / "json_without_image.jpg").unlink()
    (folder / "photo_without_masks.json").unlink()
    photo_bytes = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(photo_bytes[: len(photo_bytes) // 2])


@pytest.fixture(scope="session")
def bad_images() -> dict[str, str]:
    """Image id -> error class with which the image is quarantined."""
    return BAD_IMAGES


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with twelve drawn scenes, and five bad images in its subfolder `bad`."""
    folder = tmp_path_factory.mktemp("corpus")
    write_scenes(folder, range(NUM_SCENES))
    spoil(folder / "bad")
    return folder
