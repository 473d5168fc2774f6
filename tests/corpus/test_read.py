"""One image by its row: what can be handled is handled and counted, what can't is named."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.corpora import SIZE, encoded, photo, sa1b_record, square, write, write_photo

from ureca.corpus.read import ReadLimits, photos_directory, read_row, read_sa1b
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.corpus.table import load_image
from ureca.errors import ConfigError, ImageError, InputError, MaskError, MaskSizeError
from ureca.regions.rle import decode_rle, encode_mask, rle_area, rle_bbox

PHOTOS = ["astronaut", "chelsea", "china", "coffee", "flower", "rocket"]
UPRIGHT = (SIZE[1], SIZE[0])
"""(height, width) of a photo of `SIZE` that EXIF turns by 90 degrees."""


@pytest.mark.parametrize("name", PHOTOS)
def test_shipped_photos_read_whole(name: str):
    path = photos_directory() / f"{name}.jpg"
    loaded = read_sa1b(path, path.with_suffix(".json"))
    assert loaded.data == path.read_bytes()
    assert loaded.size == loaded.image.shape[:2]
    assert not loaded.notes
    annotations = json.loads(path.with_suffix(".json").read_text())["annotations"]
    assert [mask.region_id for mask in loaded.masks] == [str(item["id"]) for item in annotations]
    for mask, item in zip(loaded.masks, annotations, strict=True):
        assert mask.segmentation["size"] == list(loaded.size)
        assert rle_area(mask.segmentation) == item["area"]
        assert list(rle_bbox(mask.segmentation)) == item["bbox"]


def test_license_of_every_shipped_photo_is_stated():
    text = (photos_directory() / "LICENSES.md").read_text()
    for path in photos_directory().glob("*.jpg"):
        assert f"| {path.name} | " in text
    for author in ("danielbuechele", "vultilion"):
        assert f"CC BY 2.0 | {author} | https://www.flickr.com/photos/{author}/" in text
    assert "recompressed" in text


def read_with(tmp_path: Path, record: Any, image: bytes | None = None) -> Any:
    path = write(tmp_path / "a.png", image or encoded(photo()))
    return read_sa1b(path, write(tmp_path / "a.json", record))


def record_of(*annotations: dict[str, Any], size: tuple[int, int] = SIZE) -> dict[str, Any]:
    return {"image": {"height": size[0], "width": size[1]}, "annotations": list(annotations)}


def counts_of(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed runs."""
    runs, value = [0], False
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


SQUARE_FORMS = {
    "rle": encode_mask(square()),
    "list of runs": {"size": list(SIZE), "counts": counts_of(square())},
    "polygon": [[3, 2, 9, 2, 9, 8, 3, 8]],
    "two polygons": [[3, 2, 6, 2, 6, 8, 3, 8], [6, 2, 9, 2, 9, 8, 6, 8]],
}


@pytest.mark.parametrize("form", SQUARE_FORMS)
def test_every_form_of_a_segmentation_gives_the_same_mask(tmp_path: Path, form: str):
    loaded = read_with(tmp_path, record_of({"id": 7, "segmentation": SQUARE_FORMS[form]}))
    (mask,) = loaded.masks
    assert mask.region_id == "7"
    np.testing.assert_array_equal(decode_rle(mask.segmentation), square())
    assert not loaded.notes


def test_box_alone_is_a_mask_and_counted(tmp_path: Path):
    boxes = [{"id": 1, "bbox": [3, 2, 6, 6]}, {"id": 2, "bbox": [3, 2, 6, 6], "segmentation": []}]
    loaded = read_with(tmp_path, record_of(*boxes))
    for mask in loaded.masks:
        np.testing.assert_array_equal(decode_rle(mask.segmentation), square())
    assert loaded.notes == Counter(boxes=2)


def test_list_of_the_automatic_mode_is_a_record(tmp_path: Path):
    loaded = read_with(tmp_path, [{"segmentation": encode_mask(square()), "bbox": [3, 2, 6, 6], "area": 36}] * 2)
    assert [mask.region_id for mask in loaded.masks] == ["0", "1"]


def test_masks_without_area_and_crowds_are_left_out_and_counted(tmp_path: Path):
    empty = encode_mask(np.zeros(SIZE, dtype=bool))
    loaded = read_with(
        tmp_path,
        record_of(
            {"id": 1, "segmentation": empty},
            {"id": 2, "segmentation": [[3, 3, 3, 3, 3, 3]]},
            {"id": 3, "bbox": [40, 40, 2, 2]},
            {"id": 4, "segmentation": SQUARE_FORMS["rle"], "iscrowd": 1},
            {"id": 5, "segmentation": SQUARE_FORMS["rle"]},
        ),
    )
    assert [mask.region_id for mask in loaded.masks] == ["5"]
    assert loaded.notes == Counter(empty_masks=3, crowds=1, boxes=1)


def test_no_masks_is_no_error(tmp_path: Path):
    loaded = read_with(tmp_path, record_of())
    assert (loaded.masks, loaded.size) == ([], SIZE)
    plain = read_sa1b(write_photo(tmp_path, "b", num_masks=None), None)
    assert (plain.masks, plain.size) == ([], SIZE)


def test_same_id_again_gets_one_that_no_other_has(tmp_path: Path):
    annotations = [{"id": id_, "segmentation": SQUARE_FORMS["rle"]} for id_ in ("7", 7, "7#2", "8", "7")]
    loaded = read_with(tmp_path, record_of(*annotations))
    assert [mask.region_id for mask in loaded.masks] == ["7", "7#3", "7#2", "8", "7#4"]
    assert loaded.notes == Counter(duplicated_ids=2)


def test_two_thousand_masks_are_read(tmp_path: Path):
    side = 512
    masks = np.zeros((side, side), dtype=bool)
    annotations = []
    for number in range(2000):
        masks[:] = False
        masks[number % 450 : number % 450 + 40, number // 5 : number // 5 + 50] = True
        annotations.append({"id": number, "segmentation": encode_mask(masks)})
    record = record_of(*annotations, size=(side, side))
    loaded = read_with(tmp_path, record, encoded(photo((side, side))))
    assert len(loaded.masks) == 2000
    assert loaded.masks[1999].segmentation == annotations[1999]["segmentation"]


def turned_jpeg(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(), "JPEG", exif=exif)


def test_masks_of_the_turned_picture_turn_the_photo(tmp_path: Path):
    data = turned_jpeg()
    stored = read_with(tmp_path, sa1b_record(), data)
    assert (stored.size, stored.notes) == (SIZE, Counter())
    mask = np.rot90(square(), -1)  # orientation 6: a quarter turn clockwise
    rotated = read_with(tmp_path, record_of({"id": 1, "segmentation": encode_mask(mask)}), data)
    assert (rotated.size, rotated.notes) == (UPRIGHT, Counter(exif_rotated=1))
    np.testing.assert_array_equal(rotated.image, np.rot90(stored.image, -1))
    # the row's size is all that later readers need
    row = ImageRow(image_id="a", image_bytes=rotated.data, height=UPRIGHT[0], width=UPRIGHT[1], status="unlabeled")
    np.testing.assert_array_equal(load_image(row), rotated.image)


def test_photo_without_masks_stands_upright(tmp_path: Path):
    assert read_sa1b(write(tmp_path / "a.jpg", turned_jpeg()), None).size == UPRIGHT
    half_turn = read_sa1b(write(tmp_path / "b.jpg", turned_jpeg(orientation=3)), None)
    np.testing.assert_array_equal(half_turn.image, read_sa1b(write(tmp_path / "c.jpg", turned_jpeg(1)), None).image)


def test_polygons_go_by_the_size_of_their_record(tmp_path: Path):
    polygon = {"id": 1, "segmentation": SQUARE_FORMS["polygon"]}
    assert read_with(tmp_path, record_of(polygon, size=UPRIGHT), turned_jpeg()).size == UPRIGHT
    assert read_with(tmp_path, record_of(polygon), turned_jpeg()).size == SIZE
    assert read_with(tmp_path, [polygon], turned_jpeg()).size == SIZE


FULL_UPRIGHT = encode_mask(np.ones(UPRIGHT, dtype=bool))
RLE = SQUARE_FORMS["rle"]


@pytest.mark.parametrize(
    ("record", "kind", "text"),
    [
        (
            record_of({"id": 1, "segmentation": RLE}, {"id": 2, "segmentation": FULL_UPRIGHT}),
            MaskSizeError,
            r"a.json: region '2' .*\[16, 12\].*\[12, 16\].*EXIF",
        ),
        (
            record_of({"id": 2, "segmentation": FULL_UPRIGHT}),
            MaskSizeError,
            r"a.json: region '2' .*\[16, 12\].*\[12, 16\]",
        ),
        (
            record_of({"id": 1, "segmentation": SQUARE_FORMS["polygon"]}, size=(24, 32)),
            ImageError,
            r"a.png: .*\[12, 16\].*\[24, 32\]",
        ),
        (
            record_of({"id": 1, "segmentation": {"size": [12, 16], "counts": "3"}}),
            MaskError,
            r"a.json: region '1' .* 3,.* 192 pixels \(12 x 16\)",
        ),
        (
            record_of({"id": 1, "segmentation": [[1, 2]]}),
            MaskError,
            r"a.json: region '1': polygon \[\[1, 2\]\]",
        ),
        (
            record_of({"id": 1}),
            MaskError,
            "a.json: region '1' .*segmentation.*bbox",
        ),
        (
            {"image": {"height": 12, "width": 16}},
            InputError,
            "a.json: .*SA-1B.*KeyError: 'annotations'",
        ),
        (
            [1, 2],
            InputError,
            "a.json: .*SA-1B.*TypeError",
        ),
    ],
)
def test_wrong_masks_are_named(tmp_path: Path, record: Any, kind: type[Exception], text: str):
    with pytest.raises(kind) as error:
        read_with(tmp_path, record)
    assert type(error.value) is kind
    assert re.match(f"{re.escape(str(tmp_path))}/{text}", str(error.value))


def test_missing_and_damaged_files_are_named(tmp_path: Path):
    path = write_photo(tmp_path, "a")
    masks_path = path.with_suffix(".json")
    masks_path.write_text(masks_path.read_text()[:50])
    with pytest.raises(InputError, match="a.json:.*JSON.*50"):
        read_sa1b(path, masks_path)
    masks_path.unlink()
    with pytest.raises(InputError, match="a.json: no such file"):
        read_sa1b(path, masks_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ImageError, match="a.png: .*(damaged|truncated|cut off|can't be)"):
        read_sa1b(path, None)
    path.unlink()
    with pytest.raises(ImageError) as error:
        read_sa1b(path, masks_path)
    assert str(error.value) == (
        f"{path}: no such file. Check the path, and the folder it is relative to. It is the photo of {masks_path}."
    )


def test_pixel_limit_is_an_option(tmp_path: Path):
    row = ManifestRow(image_id="a", image_path=str(write_photo(tmp_path, "a", num_masks=None)))
    assert read_row(row, ReadLimits(max_pixels=192)).size == SIZE
    with pytest.raises(ImageError) as error:
        read_row(row, ReadLimits(max_pixels=191))
    assert str(error.value) == (
        f"{tmp_path}/a.png: too large (12 x 16 pixels; the limit is 191 pixels). "
        "Scale the image and its masks down, or raise max_pixels if you trust the file."
    )
    with pytest.raises(ConfigError, match="max_pixels=0:.*1.*178956970"):
        ReadLimits(max_pixels=0)


def png_row(tmp_path: Path, kind: Any, *files: Path, record: str | None = None) -> ManifestRow:
    return ManifestRow(
        image_id="folder/a",
        image_path=str(write_photo(tmp_path, "a", num_masks=None, suffix=".jpg")),
        masks_path=str(files[0]),
        masks_kind=kind,
        mask_files=tuple(map(str, files)) if kind == "pngs" else (),
        record=record,
    )


def test_one_png_a_region(tmp_path: Path):
    gray = square().astype(np.uint8)
    smooth = gray * 255
    smooth[1, 3:9] = 100  # an edge between set and not set
    cutout = np.dstack([np.full(SIZE, 200, dtype=np.uint8)] * 3 + [gray * 255])
    forms = {"a_1": gray, "a_2": smooth, "3": cutout, "4": square(), "5": np.dstack([gray * 255] * 3)}
    files = [write(tmp_path / f"{name}.png", encoded(Image.fromarray(pixels))) for name, pixels in forms.items()]
    empty = write(tmp_path / "6.png", np.zeros(SIZE, dtype=np.uint8))
    loaded = read_row(png_row(tmp_path, "pngs", *files, empty))
    assert [mask.region_id for mask in loaded.masks] == ["1", "2", "3", "4", "5"]
    for mask in loaded.masks:
        np.testing.assert_array_equal(decode_rle(mask.segmentation), square())
    assert loaded.notes == Counter(empty_masks=1)

    larger = write(tmp_path / "a_7.png", np.ones((24, 32), dtype=np.uint8))
    with pytest.raises(MaskSizeError) as error:
        read_row(png_row(tmp_path, "pngs", *files, larger))
    assert str(error.value) == (
        f"{larger}: a mask of [24, 32] (height, width), its image is [12, 16]. Save the mask at the image's size."
    )


def id_map() -> np.ndarray:
    """int64 (12, 16): region 1 in two pieces, 2 inside its first piece, 3 down to the last pixel, 0 around."""
    ids = np.zeros(SIZE, dtype=np.int64)
    ids[1:6, 1:6] = 1
    ids[2:4, 2:4] = 2
    ids[8:11, 0:2] = 1
    ids[10:, 12:] = 3
    return ids


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB"])
def test_png_of_region_ids(tmp_path: Path, mode: str):
    ids = id_map()
    factor = 257 if mode == "RGB" else 1
    if mode == "RGB":
        pixels = Image.fromarray(np.dstack([ids, ids, 0 * ids]).astype(np.uint8))
    elif mode == "I;16":
        pixels = Image.fromarray(ids.astype(np.uint16))
    else:
        pixels = Image.fromarray(ids.astype(np.uint8), mode="L")
        if mode == "P":
            pixels.putpalette([value for color in ((0, 0, 0), (200, 0, 0), (0, 200, 0), (9, 9, 9)) for value in color])
    loaded = read_row(png_row(tmp_path, "id_map", write(tmp_path / "a.png", encoded(pixels))))
    assert [mask.region_id for mask in loaded.masks] == [str(factor * value) for value in (1, 2, 3)]
    for mask, value in zip(loaded.masks, (1, 2, 3), strict=True):
        np.testing.assert_array_equal(decode_rle(mask.segmentation), ids == value)
        assert mask.segmentation == encode_mask(ids == value)


def test_border_of_pascal_voc_is_no_region_but_a_white_mask_is(tmp_path: Path):
    ids = id_map().astype(np.uint8)
    ids[6] = 255
    with_palette = Image.fromarray(ids, mode="L")
    with_palette.putpalette([0] * 768)
    loaded = read_row(png_row(tmp_path, "id_map", write(tmp_path / "a.png", encoded(with_palette))))
    assert ([mask.region_id for mask in loaded.masks], loaded.notes) == (["1", "2", "3"], Counter(void=1))
    gray = read_row(png_row(tmp_path, "id_map", write(tmp_path / "a.png", ids)))
    assert ([mask.region_id for mask in gray.masks], gray.notes) == (["1", "2", "3", "255"], Counter())


def test_only_listed_segments_of_a_panoptic_map_are_regions(tmp_path: Path):
    ids = id_map()
    colors = np.dstack([ids, 0 * ids, ids]).astype(np.uint8)  # 1 becomes 1 + 65536
    segments = [{"id": 65537}, {"id": 3 * 65537}, {"id": 9}, {"id": 2 * 65537, "iscrowd": 1}]
    record = json.dumps(record_of(*segments))
    loaded = read_row(png_row(tmp_path, "id_map", write(tmp_path / "p.png", colors), record=record))
    assert [mask.region_id for mask in loaded.masks] == ["65537", "196611"]
    assert loaded.notes == Counter(empty_masks=1, crowds=1)


def test_photo_in_the_place_of_an_id_map_is_refused(tmp_path: Path):
    size = (300, 300)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    path = write(tmp_path / "a.png", noise)
    row = ManifestRow(image_id="a", image_path=str(path), masks_path=str(path), masks_kind="id_map")
    with pytest.raises(MaskError, match=r"a.png: 8\d{4}"):
        read_row(row)


def test_map_of_two_thousand_regions_is_read(tmp_path: Path):
    ids = np.kron(np.arange(2000, dtype=np.uint16).reshape(40, 50) + 1, np.ones((8, 8), dtype=np.uint16))
    image = write(tmp_path / "a.jpg", photo(ids.shape))
    path = write(tmp_path / "a.png", ids)
    row = ManifestRow(image_id="a", image_path=str(image), masks_path=str(path), masks_kind="id_map")
    masks = read_row(row).masks
    assert len(masks) == 2000
    np.testing.assert_array_equal(decode_rle(masks[1234].segmentation), ids == 1235)
