"""Corpora of photos with masks: what is there is listed, what is wrong is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ureca.corpus import ManifestSummary, iter_manifest, photos_directory, read_sa1b, write_manifest
from ureca.errors import ImageError, InputError, MaskError, MaskSizeError
from ureca.regions import encode_mask, rle_area, rle_bbox

PHOTOS = ["astronaut", "chelsea", "china", "coffee", "flower", "rocket"]


def write_photo(folder: Path, name: str, num_masks: int | None = 2, suffix: str = ".png") -> Path:
    """A photo of 12x16 pixels; with masks "1", "2", … unless `num_masks` is None."""
    path = folder / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), 90, dtype=np.uint8)).save(path)
    if num_masks is not None:
        mask = np.zeros((12, 16), dtype=bool)
        mask[2:8, 3:9] = True
        record = {
            "image": {"image_id": 1, "height": 12, "width": 16, "file_name": path.name},
            "annotations": [{"id": number, "segmentation": encode_mask(mask)} for number in range(1, num_masks + 1)],
        }
        path.with_suffix(".json").write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("name", PHOTOS)
def test_shipped_photos_read_whole(name: str):
    path = photos_directory() / f"{name}.jpg"
    data, size, masks = read_sa1b(path, path.with_suffix(".json"))
    assert data == path.read_bytes()
    annotations = json.loads(path.with_suffix(".json").read_text())["annotations"]
    assert [mask.region_id for mask in masks] == [str(item["id"]) for item in annotations]
    for mask, item in zip(masks, annotations, strict=True):
        assert mask.segmentation["size"] == list(size)
        assert rle_area(mask.segmentation) == item["area"]
        assert list(rle_bbox(mask.segmentation)) == item["bbox"]


def test_license_of_every_shipped_photo_is_stated():
    text = (photos_directory() / "LICENSES.md").read_text()
    for photo in photos_directory().glob("*.jpg"):
        assert f"| {photo.name} | " in text
    for author in ("danielbuechele", "vultilion"):
        assert f"CC BY 2.0 | {author} | https://www.flickr.com/photos/{author}/" in text
    assert "recompressed" in text


def test_manifest_of_the_shipped_photos_passes_over_other_json(tmp_path: Path):
    summary = write_manifest([photos_directory()], tmp_path / "manifest.parquet")
    assert summary == ManifestSummary(num_images=6, num_with_masks=6, num_without_masks=0, num_without_image=0)
    rows = list(iter_manifest(tmp_path / "manifest.parquet"))
    assert [row.image_id for row in rows] == PHOTOS  # and not provenance
    assert all(Path(row.image_path).is_absolute() for row in rows)
    assert all(row.masks_path == row.image_path.replace(".jpg", ".json") for row in rows)


def test_manifest_lists_subfolders_plain_photos_and_masks_without_photo(tmp_path: Path):
    corpus = tmp_path / "corpus"
    write_photo(corpus, "b/two", suffix=".JPG")
    write_photo(corpus, "a", num_masks=None, suffix=".jpeg")
    write_photo(corpus, "lost").unlink()
    (corpus / "damaged.json").write_text('{"image": {"height": 12')
    (corpus / "list.json").write_text("[1, 2]")
    write_photo(corpus, ".trash/old")
    (corpus / "readme.txt").write_text("not a photo")

    summary = write_manifest([corpus], tmp_path / "manifest.parquet")
    assert summary == ManifestSummary(num_images=4, num_with_masks=1, num_without_masks=1, num_without_image=2)
    rows = {row.image_id: row for row in iter_manifest(tmp_path / "manifest.parquet")}
    assert list(rows) == ["a", "b/two", "damaged", "lost"]
    assert rows["a"].masks_path is None
    assert rows["b/two"].masks_path == str(corpus / "b/two.json")
    for name in ("damaged", "lost"):
        with pytest.raises(ImageError) as error:
            read_sa1b(rows[name].image_path, rows[name].masks_path)
        assert str(error.value) == (
            f"{corpus}/{name}.jpg: no such file. Check the path, and the folder it is relative to. "
            f"It is the photo of {corpus}/{name}.json."
        )


def test_manifest_is_the_same_whatever_the_order_of_sources(tmp_path: Path):
    write_photo(tmp_path / "one", "x")
    write_photo(tmp_path / "two", "y")
    write_manifest([tmp_path / "one", tmp_path / "two"], tmp_path / "a.parquet")
    write_manifest([tmp_path / "two", tmp_path / "one"], tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_one_image_id_from_two_files_is_refused_with_both_named(tmp_path: Path):
    first, second = write_photo(tmp_path / "one", "x"), write_photo(tmp_path / "two", "x")
    with pytest.raises(InputError) as error:
        write_manifest([tmp_path / "one", tmp_path / "two"], tmp_path / "manifest.parquet")
    assert str(error.value) == (
        f"image id 'x' belongs to two files: {first} and {second}. "
        "Rename or remove one; an id is the path below the source folder without the suffix."
    )
    assert not (tmp_path / "manifest.parquet").exists()

    third = write_photo(tmp_path / "one", "x", suffix=".jpg")
    with pytest.raises(InputError, match=f"{third} and {first}"):
        write_manifest([tmp_path / "one"], tmp_path / "manifest.parquet")


def test_source_without_photos_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no image in it \(.jpg, .jpeg, .png\). Give the folder"):
        write_manifest([tmp_path / "empty"], tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match="missing: no such folder"):
        write_manifest([tmp_path / "missing"], tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match="a.png: no such folder"):
        write_manifest([write_photo(tmp_path, "a")], tmp_path / "manifest.parquet")


def test_table_that_is_no_manifest_is_refused(tmp_path: Path):
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="m.parquet: not a manifest .* Write one with ureca.corpus.write_manifest"):
        list(iter_manifest(tmp_path / "m.parquet"))


def test_photo_without_masks(tmp_path: Path):
    path = write_photo(tmp_path, "a", num_masks=None)
    assert read_sa1b(path, None) == (path.read_bytes(), (12, 16), [])


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The photo's JSON after `edit` changed its record."""
    masks_path = path.with_suffix(".json")
    record = json.loads(masks_path.read_text())
    edit(record)
    masks_path.write_text(json.dumps(record))
    return masks_path


FULL = encode_mask(np.ones((16, 12), dtype=bool))
EMPTY = encode_mask(np.zeros((12, 16), dtype=bool))


@pytest.mark.parametrize(
    ("edit", "kind", "text"),
    [
        (
            lambda record: record["annotations"][1].update(segmentation=FULL),
            MaskSizeError,
            "a.json: region '2' has an RLE of size [16, 12], its image is [12, 16] (height, width). "
            "Encode the mask at the image's stored size; EXIF rotation of only one of them is a common "
            "cause.",
        ),
        (
            lambda record: record["annotations"][0].update(segmentation=EMPTY),
            MaskError,
            "a.json: region '1' is an empty mask: no pixel is set. Remove it or encode it again.",
        ),
        (
            lambda record: record["annotations"][1].update(id="1"),
            MaskError,
            "a.json: mask id '1' occurs twice. Give every mask an id of its own.",
        ),
        (
            lambda record: record["image"].update(height=16, width=12),
            ImageError,
            "a.png: the image is [12, 16] (height, width), its records say [16, 12]. "
            "Masks and image must be of one size: encode the masks at the image's stored size.",
        ),
        (
            lambda record: record.pop("annotations"),
            InputError,
            "a.json: not of SA-1B's form (KeyError: 'annotations'). Give "
            '{"image": {"height", "width", …}, "annotations": [{"id", "segmentation", …}, …]}.',
        ),
    ],
)
def test_wrong_masks_are_named(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], kind: type[Exception], text: str
):
    path = write_photo(tmp_path, "a")
    with pytest.raises(kind) as error:
        read_sa1b(path, edited(path, edit))
    assert type(error.value) is kind
    assert str(error.value) == f"{tmp_path}/{text}"


def test_missing_and_damaged_files_are_named(tmp_path: Path):
    path = write_photo(tmp_path, "a")
    masks_path = path.with_suffix(".json")
    masks_path.write_text(masks_path.read_text()[:50])
    with pytest.raises(InputError, match="a.json: not valid JSON .* It may be truncated: 50 bytes."):
        read_sa1b(path, masks_path)
    masks_path.unlink()
    with pytest.raises(InputError, match="a.json: no such file"):
        read_sa1b(path, masks_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ImageError, match="a.png: the image can't be decoded .* Copy or download it again"):
        read_sa1b(path, None)


def test_corpus_in_s3(tmp_path: Path, s3_bucket: str):
    from ureca import io

    path = write_photo(tmp_path, "a")
    source = f"{s3_bucket}/corpus"
    for file in (path, path.with_suffix(".json")):
        io.write_bytes(f"{source}/part/{file.name}", file.read_bytes())
    summary = write_manifest([source], f"{s3_bucket}/manifest.parquet")
    assert summary.num_with_masks == 1
    (row,) = iter_manifest(f"{s3_bucket}/manifest.parquet")
    assert (row.image_id, row.image_path) == ("part/a", f"{source}/part/a.png")
    assert len(read_sa1b(row.image_path, row.masks_path).masks) == 2
