"""Sources and the manifest: what is there is listed, whatever its form; what is wrong is named."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import SIZE, encoded, photo, sa1b_record, square, write, write_coco, write_photo, write_tar

from ureca.corpus.read import photos_directory, read_row
from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.sources.manifest import ManifestRow, ManifestSummary, iter_image_ids, iter_manifest
from ureca.corpus.sources.parse import write_manifest
from ureca.corpus.table import iter_images, write_regions
from ureca.errors import ImageError, InputError, MaskError
from ureca.regions.rle import decode_rle, encode_mask
from ureca.storage import files as io

RLE = encode_mask(square())


def manifest_of(*sources: Path | str) -> tuple[ManifestSummary, dict[str, ManifestRow]]:
    """The summary and the rows by image id."""
    first = Path(str(sources[0]).partition(":")[0])
    path = first.parent / "manifest.parquet"
    summary = write_manifest(sources, path)
    rows = list(iter_manifest(path))
    assert [row.image_id for row in rows] == sorted(row.image_id for row in rows) == list(iter_image_ids(path))
    assert summary.num_images == len(rows)
    return summary, {row.image_id: row for row in rows}


def mask_ids(row: ManifestRow) -> list[str]:
    return [mask.region_id for mask in read_row(row).masks]


def test_shipped_photos_pass_over_other_json(tmp_path: Path):
    summary = write_manifest([photos_directory()], tmp_path / "manifest.parquet")
    (source,) = summary.sources
    assert (source.kind, source.num_images, source.num_with_masks) == ("photos", 6, 6)
    rows = list(iter_manifest(tmp_path / "manifest.parquet"))
    assert [row.image_id for row in rows] == ["astronaut", "chelsea", "china", "coffee", "flower", "rocket"]
    assert all(Path(row.image_path).is_absolute() for row in rows)
    assert all(row.masks_path == row.image_path.replace(".jpg", ".json") for row in rows)


def test_subfolders_plain_photos_and_masks_without_photo(tmp_path: Path):
    corpus = tmp_path / "corpus"
    write_photo(corpus, "b/two", suffix=".JPG")
    write_photo(corpus, "a", num_masks=None, suffix=".jpeg")
    write_photo(corpus, "lost").unlink()
    write(corpus / "damaged.json", '{"image": {"height": 12')
    write(corpus / "list.json", [1, 2])
    write_photo(corpus, ".trash/old")
    write(corpus / "readme.txt", "not a photo")

    summary, rows = manifest_of(corpus)
    (source,) = summary.sources
    assert str(source) == (
        f"{corpus}  photos  4 images  1 of them without masks  2 of them masks whose photo is missing"
    )
    assert list(rows) == ["a", "b/two", "damaged", "lost"]
    assert (rows["a"].masks_path, rows["a"].masks_kind) == (None, None)
    assert rows["b/two"].masks_path == str(corpus / "b/two.json")
    for name in ("damaged", "lost"):
        with pytest.raises(ImageError) as error:
            read_row(rows[name])
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
    old = write(tmp_path / "manifest.parquet", "old")
    with pytest.raises(InputError) as error:
        write_manifest([tmp_path / "one", tmp_path / "two"], old)
    assert f"image id 'x' belongs to two files: {first} and {second}." in str(error.value)
    assert old.read_text() == "old"

    third = write_photo(tmp_path / "three", "x", suffix=".jpg")
    fourth = write_photo(tmp_path / "three", "x", suffix=".jpeg")
    with pytest.raises(InputError, match=f"{fourth} and {third}"):
        write_manifest([tmp_path / "three"], old)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("empty", "folder"),
        ("missing", "JSON"),
        ("a.png", "a.png"),
        ("x.tar.gz", "x.tar.gz"),
        ("x.tar", "x.tar:.*0"),
        ("empty:image=photos", "empty:image=photos: image=.*PATH, PATH:images=FOLDER, PATH:masks="),
        ("empty:images=photos", "images="),
        ("photos:masks=missing", "missing"),
        ("gs://bucket", "gs://bucket: gs://.*s3://bucket/key"),
    ],
)
def test_source_that_is_none_is_refused(tmp_path: Path, source: str, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_photo(tmp_path, "a")
    write_photo(tmp_path, "photos/a")
    write(tmp_path / "x.tar", "no tar at all" * 100)
    with pytest.raises(Exception, match=text):
        write_manifest([source], tmp_path / "manifest.parquet")
    assert not (tmp_path / "manifest.parquet").exists()


def test_table_that_is_no_manifest_is_refused(tmp_path: Path):
    write(tmp_path / "m.parquet", "PAR1")
    with pytest.raises(InputError, match="m.parquet:.*ureca.corpus.sources.parse.write_manifest"):
        list(iter_manifest(tmp_path / "m.parquet"))
    write_regions(tmp_path / "t.parquet", [])
    with pytest.raises(InputError, match="t.parquet:.*image_path"):
        list(iter_manifest(tmp_path / "t.parquet"))


def shard(path: Path, *names: str) -> Path:
    members = []
    for name in names:
        members += [(f"{name}.jpg", encoded(photo(), "JPEG")), (f"{name}.json", json.dumps(sa1b_record()).encode())]
    return write_tar(path, members)


def test_tar_shards_give_what_their_unpacked_folders_give(tmp_path: Path):
    shard(tmp_path / "shards" / "sa_1.tar", "./sa_11", "./sa_12")
    shard(tmp_path / "shards" / "more" / "sa_2.tar", "sa_21")
    for name in ("sa_1/sa_11", "sa_1/sa_12", "more/sa_2/sa_21"):
        write_photo(tmp_path / "unpacked", name, suffix=".jpg")
    summary, in_tars = manifest_of(tmp_path / "shards")
    assert [(source.kind, source.num_with_masks) for source in summary.sources] == [("tar shards", 3)]
    _, unpacked = manifest_of(tmp_path / "unpacked")
    assert list(in_tars) == list(unpacked)
    for image_id, row in in_tars.items():
        loaded, same = read_row(row), read_row(unpacked[image_id])
        assert loaded.data == same.data
        assert loaded.masks == same.masks
    _, alone = manifest_of(tmp_path / "shards" / "sa_1.tar")
    assert list(alone) == ["sa_11", "sa_12"]


def test_photo_in_a_tar_and_in_a_folder_of_its_name_is_refused(tmp_path: Path):
    shard(tmp_path / "shards" / "sa_1.tar", "sa_11")
    write_photo(tmp_path / "shards", "sa_1/sa_11", suffix=".jpg")
    with pytest.raises(InputError, match="'sa_1/sa_11'.*sa_11.jpg.*sa_1.tar#sa_"):
        write_manifest([tmp_path / "shards"], tmp_path / "manifest.parquet")


def test_tar_that_breaks_off_is_refused_and_its_lost_photo_is_a_row(tmp_path: Path):
    path = shard(tmp_path / "a.tar", "sa_1", "sa_2")
    data = path.read_bytes()
    path.write_bytes(data[:-11_000])
    with pytest.raises(InputError, match=r"a.tar:.*\d"):
        write_manifest([path], tmp_path / "manifest.parquet")
    write_tar(path, [("sa_1.json", b"{}"), ("sa_2.json", json.dumps(sa1b_record()).encode())])
    _, rows = manifest_of(path)
    with pytest.raises(ImageError, match=r"a.tar/sa_2.jpg:.*a.tar#sa_2.json:\d+"):
        read_row(rows["sa_2"])


def test_photos_with_masks_as_pngs(tmp_path: Path):
    corpus = tmp_path / "corpus"
    gray, ids = square().astype(np.uint8) * 255, square().astype(np.uint8) * 5
    write_photo(corpus, "by_folder", None, ".jpg")
    write(corpus / "by_folder" / "0.png", gray)
    write(corpus / "by_folder" / "1.png", gray)
    write(corpus / "by_folder" / "metadata.csv", "id,area")
    write_photo(corpus, "by_name", None, ".jpg")
    write(corpus / "by_name_cup.png", photo())  # in color, but next to a JPEG of its name: a mask
    write_photo(corpus, "by_map", None, ".jpg")
    write(corpus / "by_map.png", ids)
    write_photo(corpus, "png", None)
    write(corpus / "png_mask.png", gray)
    write(corpus / "png_mask_2.png", gray)
    write_photo(corpus, "png_two", None)  # in color: a separate photo
    write_photo(corpus, "plain", None, ".jpg")
    _, rows = manifest_of(corpus)
    assert {row.image_id: row.masks_kind for row in rows.values()} == {
        "by_folder": "pngs",
        "by_map": "id_map",
        "by_name": "pngs",
        "plain": None,
        "png": "pngs",
        "png_two": None,
    }
    assert mask_ids(rows["by_folder"]) == ["0", "1"]
    assert mask_ids(rows["by_name"]) == ["cup"]
    assert mask_ids(rows["by_map"]) == ["5"]
    assert mask_ids(rows["png"]) == ["mask", "mask_2"]


def test_json_comes_before_pngs(tmp_path: Path):
    write_photo(tmp_path / "corpus", "a", suffix=".jpg")
    write(tmp_path / "corpus" / "a_1.png", np.ones(SIZE, dtype=np.uint8))
    _, rows = manifest_of(tmp_path / "corpus")
    assert rows["a"].masks_kind == "record"


def test_masks_in_a_folder_of_their_own(tmp_path: Path):
    photos, masks = tmp_path / "JPEGImages", tmp_path / "SegmentationObject"
    ids = square().astype(np.uint8)
    for name in ("a", "b", "c", "d/e"):
        write_photo(photos, name, num_masks=None, suffix=".jpg")
    write(masks / "a.png", ids)
    write(masks / "b_1.png", ids)
    write(masks / "b" / "2.png", ids)
    write(masks / "d" / "e.json", sa1b_record())
    write(masks / "lost.png", ids)
    summary, rows = manifest_of(f"{photos}:masks={masks}")
    (source,) = summary.sources
    assert (source.num_with_masks, source.num_without_masks, source.num_without_image) == (3, 1, 1)
    assert {image_id: row.masks_kind for image_id, row in rows.items()} == {
        "a": "id_map",
        "b": "pngs",
        "c": None,
        "d/e": "record",
        "lost": "id_map",
    }
    assert sorted(mask_ids(rows["b"])) == ["1", "2"]
    with pytest.raises(ImageError, match="JPEGImages/lost.jpg:.*lost.png"):
        read_row(rows["lost"])


ANNOTATIONS: list[dict[str, Any]] = [
    {"id": 11, "image_id": 1, "segmentation": RLE, "bbox": [3, 2, 6, 6], "category_id": 3, "iscrowd": 0},
    {"id": 21, "image_id": 2, "segmentation": [[3, 2, 9, 2, 9, 8, 3, 8]], "bbox": [3, 2, 6, 6]},
    {"id": 12, "image_id": 1, "bbox": [3.0, 2.0, 6.0, 6.0]},
    {"id": 13, "image_id": 1, "segmentation": {"size": list(SIZE), "counts": [192]}, "iscrowd": 1},
]


def test_coco_instances_find_their_photos_and_keep_each_images_own_annotations(tmp_path: Path):
    path = write_coco(tmp_path / "coco", ANNOTATIONS, num_images=3)
    summary, rows = manifest_of(path)
    assert [source.kind for source in summary.sources] == ["COCO instances"]
    assert list(rows) == ["000000000001", "000000000002", "000000000003"]
    path.unlink()  # no worker needs it
    first = read_row(rows["000000000001"])
    assert [mask.region_id for mask in first.masks] == ["11", "12"]
    assert dict(first.notes) == {"boxes": 1, "crowds": 1}
    for mask in [*first.masks, *read_row(rows["000000000002"]).masks]:
        np.testing.assert_array_equal(decode_rle(mask.segmentation), square())
    assert read_row(rows["000000000003"]).masks == []
    assert "bbox" not in str(rows["000000000002"].record)


def test_photos_elsewhere_are_named(tmp_path: Path):
    path = write_coco(tmp_path / "coco", ANNOTATIONS)
    elsewhere = (tmp_path / "coco" / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as error:
        write_manifest([path], tmp_path / "manifest.parquet")
    places = ["annotations/instances_val2017", "annotations/val2017", "annotations", "annotations/images"]
    for text in (
        f"{path}: its photos are not found: none of 000000000001.jpg, 000000000002.jpg in ",
        *(f"{tmp_path}/coco/{place}, " for place in places),
        f"{path}:images=FOLDER.",
    ):
        assert text in str(error.value)
    _, rows = manifest_of(f"{path}:images={elsewhere}")
    assert mask_ids(rows["000000000002"]) == ["21"]
    (elsewhere / "000000000001.jpg").unlink()  # one that is lost is a row that fails
    _, rows = manifest_of(f"{path}:images={elsewhere}")
    with pytest.raises(ImageError, match="000000000001.jpg"):
        read_row(rows["000000000001"])


def test_lvis_finds_photos_by_their_url(tmp_path: Path):
    write(tmp_path / "train2017" / "7.jpg", photo())
    images = [{"id": 7, "coco_url": "http://images.cocodataset.org/train2017/7.jpg", "height": 12, "width": 16}]
    annotations = [{"id": 1, "image_id": 7, "segmentation": [[3, 2, 9, 2, 9, 8, 3, 8]]}]
    path = write(tmp_path / "lvis" / "lvis_v1_val.json", {"images": images, "annotations": annotations})
    _, rows = manifest_of(path)
    assert mask_ids(rows["train2017/7"]) == ["1"]


def test_panoptic_annotations_and_their_pngs(tmp_path: Path):
    write_coco(tmp_path, [], num_images=2)
    ids = square().astype(np.int64) * 70_000  # 112, 17, 1
    colors = np.dstack([ids % 256, ids // 256 % 256, ids // 65_536]).astype(np.uint8)
    write(tmp_path / "annotations" / "panoptic_val2017" / "000000000001.png", colors)
    segment = {"id": 70_000, "category_id": 1, "area": 36, "bbox": [3, 2, 6, 6], "iscrowd": 0}
    annotation = {"image_id": 1, "file_name": "000000000001.png", "segments_info": [segment]}
    images = [{"id": n, "file_name": f"{n:012}.jpg", "height": 12, "width": 16} for n in (1, 2)]
    path = write(tmp_path / "annotations" / "panoptic_val2017.json", {"images": images, "annotations": [annotation]})
    summary, rows = manifest_of(path)
    assert [source.kind for source in summary.sources] == ["COCO panoptic"]
    (mask,) = read_row(rows["000000000001"]).masks
    assert mask.region_id == "70000"
    np.testing.assert_array_equal(decode_rle(mask.segmentation), square())
    assert read_row(rows["000000000002"]).masks == []
    moved = (tmp_path / "annotations" / "panoptic_val2017").rename(tmp_path / "pngs")
    with pytest.raises(InputError, match="PNGs.*:masks=FOLDER"):
        write_manifest([path], tmp_path / "manifest.parquet")
    assert len(manifest_of(f"{path}:masks={moved}")[1]) == 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"images": [{"id": 1, "file_na', "a.json:.*JSON"),
        ({"annotations": []}, 'a.json:.*COCO.*"images"'),
        ({"images": [3]}, "a.json:.*COCO.*images.item.*3"),
        ({"images": [{"id": 1}]}, "a.json:.*file_name.*COCO's"),
        (
            {"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]},
            "a.json:.*1",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 3}]},
            "a.json:.*image_id.*COCO's",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "segments_info": []}]},
            "a.json:.*file_name..*COCO's",
        ),
    ],
)
def test_damaged_coco_files_are_named(tmp_path: Path, content: Any, text: str):
    with pytest.raises(InputError, match=text):
        write_manifest([write(tmp_path / "a.json", content)], tmp_path / "manifest.parquet")


def test_annotations_of_unlisted_images_are_counted(tmp_path: Path):
    path = write_coco(tmp_path / "coco", [*ANNOTATIONS, {"id": 5, "image_id": 99, "bbox": [1, 1, 2, 2]}])
    summary, _ = manifest_of(path)
    assert str(summary.sources[0]).endswith("2 images  skipped 1 annotations of images that it does not list")


def test_folder_of_photos_with_coco_annotations_says_which_source_to_give(tmp_path: Path):
    path = write_coco(tmp_path / "coco", ANNOTATIONS)
    with pytest.raises(InputError) as error:
        write_manifest([tmp_path / "coco"], tmp_path / "manifest.parquet")
    assert str(error.value).startswith(f"{tmp_path}/coco: ")
    assert f"{path}:images={tmp_path}/coco" in str(error.value)
    write_photo(tmp_path / "coco", "one_with_masks")
    summary, _ = manifest_of(tmp_path / "coco")
    assert str(summary.sources[0]).endswith(f"3 images  2 of them without masks  skipped {path}")


def test_every_kind_in_one_manifest(tmp_path: Path):
    write_photo(tmp_path / "photos", "plain", num_masks=None, suffix=".webp")
    sources = [
        tmp_path / "photos",
        shard(tmp_path / "sa_1.tar", "sa_11"),
        write_coco(tmp_path / "coco", ANNOTATIONS),
    ]
    summary, rows = manifest_of(*sources)
    assert list(rows) == ["000000000001", "000000000002", "plain", "sa_11"]
    assert [source.kind for source in summary.sources] == ["photos", "tar shards", "COCO instances"]


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ureca.corpus.sources.manifest.ROWS_PER_GROUP", 50)  # so that a small corpus has many groups
    peaks = []
    for num_images in (10, 1_000, 3_000):  # the first only imports what is imported late
        folder = tmp_path / str(num_images)
        folder.mkdir()
        annotations = [
            {"id": n, "image_id": n, "segmentation": [[n, 2, 9, 2, 9, 8, 3, 8]]} for n in range(1, num_images)
        ]
        images = [{"id": n, "file_name": f"{n}.jpg", "height": 12, "width": 16} for n in range(1, num_images)]
        write(folder / "1.jpg", photo())
        path = write(folder / "a.json", {"images": images, "annotations": annotations})
        del images, annotations
        tracemalloc.start()
        write_manifest([path], folder / "manifest.parquet")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(1 for _ in iter_image_ids(folder / "manifest.parquet")) == num_images - 1
    assert peaks[2] < 1.2 * peaks[1], f"peaks of {peaks[1]} and {peaks[2]} bytes"


def test_corpora_in_s3(tmp_path: Path, s3_bucket: str):
    write_photo(tmp_path / "photos", "part/a")
    write_photo(tmp_path / "photos", "b", num_masks=None, suffix=".jpg")
    write(tmp_path / "photos" / "b_1.png", np.ones(SIZE, dtype=np.uint8))
    shard(tmp_path / "sa_1.tar", "sa_11", "sa_12")
    write_coco(tmp_path / "coco", ANNOTATIONS)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            io.write_bytes(f"{s3_bucket}/corpora/{file.relative_to(tmp_path)}", file.read_bytes())
    names = ["photos", "sa_1.tar", "coco/annotations/instances_val2017.json"]
    write_manifest([f"{s3_bucket}/corpora/{name}" for name in names], f"{s3_bucket}/corpora/manifest.parquet")
    write_manifest([tmp_path / name for name in names], tmp_path / "manifest.parquet")
    rows = list(iter_manifest(f"{s3_bucket}/corpora/manifest.parquet"))
    local = list(iter_manifest(tmp_path / "manifest.parquet"))
    assert [row.image_id for row in rows] == [row.image_id for row in local]
    assert len(rows) == 6
    table = []
    for row, same in zip(rows, local, strict=True):
        assert row.image_path == same.image_path.replace(str(tmp_path), f"{s3_bucket}/corpora")
        loaded = read_row(row)
        assert loaded.data == read_row(same).data
        assert loaded.masks == read_row(same).masks
        height, width = loaded.size
        table.append(
            ImageRow(image_id=row.image_id, image_bytes=loaded.data, height=height, width=width, status="unlabeled")
        )
    write_regions(f"{s3_bucket}/corpora/regions.parquet", table)
    assert list(iter_images(f"{s3_bucket}/corpora/regions.parquet")) == table


def table_row(image_id: str, path: Path, **more: Any) -> ImageRow:
    mask = encode_mask(square())
    region = RegionRow(region_id="7", parent=-1, depth=0, segmentation=mask, area=36, bbox=(3, 2, 6, 6), **more)
    return ImageRow(
        image_id=image_id, image_path=str(path), height=SIZE[0], width=SIZE[1], status="labeled", regions=(region,)
    )


def test_a_region_table_is_a_source_of_its_images_and_regions(tmp_path: Path):
    path = write_photo(tmp_path / "photos", "a", num_masks=None)
    aside = ImageRow.quarantined("b", None, "read", InputError("b.json: damaged"))
    labeled = table_row("a", path, caption="red", flags=("not_unique",), merged_ids=("8",), attributes={"color": "red"})
    write_regions(tmp_path / "labels.parquet", [labeled, aside])
    summary, rows = manifest_of(tmp_path / "labels.parquet")
    (source,) = summary.sources
    assert (source.kind, source.num_images, source.num_with_masks) == ("region table", 2, 1)
    loaded = read_row(rows["a"])
    assert [mask.region_id for mask in loaded.masks] == ["7"]
    assert loaded.regions == (labeled.regions[0].without_captions(),)
    assert (loaded.regions[0].merged_ids, loaded.regions[0].attributes) == (("8",), {"color": "red"})
    assert (loaded.regions[0].caption, loaded.regions[0].flags) == (None, ())
    assert "red." not in str(rows["a"].record)
    with pytest.raises(InputError, match=r"\(InputError: b\.json"):
        read_row(rows["b"])


def test_region_tables_that_are_no_source_are_refused(tmp_path: Path):
    path = write_photo(tmp_path / "photos", "a", num_masks=None)
    held = replace(table_row("a", path), image_path=None, image_bytes=path.read_bytes())
    write_regions(tmp_path / "held.parquet", [held])
    write_regions(tmp_path / "empty.parquet", [])
    for source, message in (
        ("held.parquet", "holds image bytes, but a source names files"),
        ("empty.parquet", "empty.parquet: .*without rows"),
        ("held.parquet:images=photos", "held.parquet:images=photos: .*names its images"),
        ("none.parquet", "no such file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            write_manifest([f"{tmp_path}/{source}"], tmp_path / "manifest.parquet")


def test_a_damaged_mask_of_a_region_table_is_found_when_it_is_read(tmp_path: Path):
    path = write_photo(tmp_path / "photos", "a", num_masks=None)
    row = table_row("a", path)
    cut = {"size": list(SIZE), "counts": row.regions[0].segmentation["counts"][:3]}
    write_regions(tmp_path / "labels.parquet", [replace(row, regions=(replace(row.regions[0], segmentation=cut),))])
    _, rows = manifest_of(tmp_path / "labels.parquet")
    with pytest.raises(MaskError, match=r"labels\.parquet:.*'7'"):
        read_row(rows["a"])
