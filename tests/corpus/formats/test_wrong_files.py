"""Files of the formats that are wrong: one line that names file, line and key, and no table."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ureca.corpus.formats.convert import export_regions, import_regions
from ureca.corpus.read import photos_directory
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import iter_images, write_regions
from ureca.errors import ConfigError, UrecaError
from ureca.regions.rle import encode_mask

SIZE = [20, 30]


def rle(top: int, left: int, bottom: int, right: int) -> dict[str, Any]:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


def lines() -> list[dict[str, Any]]:
    return [
        {"image": "a.jpg", "region_id": "1", "caption": "all", "segmentation": rle(0, 0, 20, 30), "parent_id": None},
        {"image": "a.jpg", "region_id": "2", "caption": "half", "segmentation": rle(0, 0, 20, 15), "parent_id": "1"},
        {"image": "b.jpg", "region_id": "1", "caption": "half", "segmentation": rle(0, 0, 10, 30), "parent_id": None},
    ]


def write_lines(folder: Path, records: list[dict[str, Any]]) -> str:
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def refused(folder: Path, path: str, name: str, images: str | None = None) -> str:
    with pytest.raises(UrecaError) as error:
        import_regions(path, str(folder / "back.parquet"), name, images)
    assert not (folder / "back.parquet").exists()
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(folder), "…")


def without(record: dict[str, Any], key: str) -> None:
    del record[key]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda some: without(some[1], "image"),
            r"…/captions.jsonl line 2: key 'image' is missing.*region_id",
        ),
        (lambda some: without(some[1], "segmentation"), r"…/captions.jsonl line 2: key 'segmentation' is missing"),
        (
            lambda some: some[1].update(segmentation={"size": SIZE, "counts": "P"}),
            r"…/captions.jsonl line 2: key 'segmentation' .*counts .*damaged.*'P'",
        ),
        (
            lambda some: some[1].update(segmentation=encode_mask(np.ones((30, 20), dtype=bool))),
            r"…/captions.jsonl line 2: key 'segmentation' .*\[30, 20\].*\[20, 30\]",
        ),
        (lambda some: some[0].update(segmentation="x"), r"…/captions.jsonl line 1: key 'segmentation' .*RLE"),
        (lambda some: some[1].update(caption=7), r"…/captions.jsonl line 2: key 'caption' is 7: .*text"),
        (lambda some: some[1].update(flags="bad"), r"…/captions.jsonl line 2: key 'flags' is 'bad': .*list"),
        (lambda some: some[1].update(flags=[1]), r"…/captions.jsonl line 2: key 'flags' is \[1\]: .*list of texts"),
        (lambda some: some[1].update(uniqueness="1"), r"…/captions.jsonl line 2: key 'uniqueness' is '1': .*number"),
        (lambda some: some[1].update(attributes={"a": 1}), r"…/captions.jsonl line 2: key 'attributes' is \{'a': 1\}:"),
        (
            lambda some: some[1].update(distractors=[{"region_id": "9"}]),
            r"…/captions.jsonl line 2: key 'distractors': .*'9'",
        ),
        (
            lambda some: some[1].update(region_id="1"),
            r"…/captions.jsonl line 2: region '1' of image 'a' .*…/captions.jsonl line 1\.",
        ),
        (
            lambda some: some[1].update(parent_id="9"),
            r"…/captions.jsonl line 2: key 'parent_id': image 'a' .*'9'",
        ),
        (
            lambda some: some[0].update(parent_id="2"),
            r"…/captions.jsonl line 1: key 'parent_id': .*'a' .*cycle",
        ),
        (
            lambda some: without(some[1], "parent_id"),
            r"…/captions.jsonl line 2: key 'parent_id' is missing.*'a'",
        ),
        (
            lambda some: some.append(some.pop(1)),
            r"…/captions.jsonl line 3: image 'a' .*again.*Sort the file",
        ),
        (lambda some: some.clear(), r"…/captions.jsonl: no image"),
    ],
)
def test_jsonl(spoil: Callable[[list[dict[str, Any]]], object], expected: str, tmp_path: Path):
    records = lines()
    spoil(records)
    assert re.match(expected, refused(tmp_path, write_lines(tmp_path, records), "jsonl"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('\n{"image": "a.jp', r"…/captions.jsonl line 2: not JSON \(Unterminated string starting at: line 1 column 11"),
        ("[1, 2]\n", r"…/captions.jsonl line 1: not a JSON object.*\[1, 2\]"),
    ],
)
def test_lines_that_are_no_objects(text: str, expected: str, tmp_path: Path):
    (tmp_path / "captions.jsonl").write_text(text)
    assert re.match(expected, refused(tmp_path, str(tmp_path / "captions.jsonl"), "jsonl"))


def test_a_file_that_is_not_there(tmp_path: Path):
    for name in ("coco", "jsonl", "ureca_jsonl", "datasets"):
        assert "…/no: no such file" in refused(tmp_path, str(tmp_path / "no"), name, str(tmp_path))


def test_jsonl_with_nothing_but_image_mask_and_caption_gets_a_tree(tmp_path: Path):
    keys = ("image", "segmentation", "caption")
    records = [{key: record[key] for key in keys} for record in reversed(lines())]
    import_regions(write_lines(tmp_path, records), str(tmp_path / "back.parquet"), "jsonl")
    b, a = iter_images(tmp_path / "back.parquet")
    assert (a.image_id, a.image_path, a.status) == ("a", str(tmp_path / "a.jpg"), "labeled")
    assert [(region.region_id, region.parent, region.depth, region.caption) for region in a.regions] == [
        ("2", -1, 0, "all"),
        ("1", 0, 1, "half"),
    ]
    assert [region.area for region in (*a.regions, *b.regions)] == [600, 300, 300]


def test_children_before_their_parents_are_put_behind_them(tmp_path: Path):
    records = lines()
    records[:2] = reversed(records[:2])
    import_regions(write_lines(tmp_path, records), str(tmp_path / "back.parquet"), "jsonl")
    a, _ = iter_images(tmp_path / "back.parquet")
    assert [(region.region_id, region.parent) for region in a.regions] == [("1", -1), ("2", 0)]


def coco() -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "val/a.jpg", "height": 20, "width": 30}],
        "annotations": [
            {"id": 1, "image_id": 5, "segmentation": [[0, 0, 20, 0, 20, 10, 0, 10]], "bbox": [0, 0, 20, 10]},
            {"id": 2, "image_id": 5, "segmentation": rle(0, 0, 20, 30), "caption": "all"},
            {"id": 3, "image_id": 5, "segmentation": rle(0, 0, 20, 30), "iscrowd": 1},
        ],
    }


def test_coco_of_others_gets_a_tree_from_masks_and_polygons(tmp_path: Path):
    (tmp_path / "captions.json").write_text(json.dumps(coco()))
    import_regions(str(tmp_path / "captions.json"), str(tmp_path / "back.parquet"), "coco")
    (row,) = iter_images(tmp_path / "back.parquet")
    assert (row.image_id, row.image_path) == ("val/a", str(tmp_path / "val" / "a.jpg"))
    assert [(region.region_id, region.parent, region.caption) for region in row.regions] == [
        ("2", -1, "all"),
        ("1", 0, None),
    ]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda some: without(some, "images"), r"…/captions.json: key 'images' is missing.*annotations"),
        (lambda some: some.update(annotations={}), r"…/captions.json: key 'annotations' .*list.*COCO"),
        (lambda some: without(some["images"][0], "height"), r"…/captions.json: images\[0\]: key 'height' is missing"),
        (lambda some: some["images"][0].update(width="30"), r"…/captions.json: images\[0\]: .*'file_name'.*'width'"),
        (lambda some: some["images"][0].update(notes=[1]), r"…/captions.json: images\[0\]: 'provenance' or 'notes'"),
        (lambda some: some["images"].append(some["images"][0]), r"…/captions.json: images\[1\]: id 5"),
        (
            lambda some: some["images"].append({**some["images"][0], "id": 6}),
            r"…/captions.json: images\[1\]: image 'val/a' .*'image_id'",
        ),
        (
            lambda some: some["annotations"][1].update(image_id=6),
            r"…/captions.json: annotations\[1\]: key 'image_id': .* 6",
        ),
        (
            lambda some: some["annotations"][0].update(segmentation=[[1, 2]]),
            r"…/captions.json: annotations\[0\]: polygon \[\[1, 2\]\]: .*three points",
        ),
        (
            lambda some: without(some["annotations"][1], "segmentation"),
            r"…/captions.json: annotations\[1\]: key 'segmentation' is missing",
        ),
        (lambda some: some["annotations"].append(7), r"…/captions.json: annotations\[3\]: 7 "),
    ],
)
def test_coco(spoil: Callable[[dict[str, Any]], object], expected: str, tmp_path: Path):
    content = coco()
    spoil(content)
    (tmp_path / "captions.json").write_text(json.dumps(content))
    assert re.match(expected, refused(tmp_path, str(tmp_path / "captions.json"), "coco"))


def test_truncated_coco(tmp_path: Path):
    (tmp_path / "captions.json").write_text(json.dumps(coco())[:-20])
    assert "captions.json: not valid JSON" in refused(tmp_path, str(tmp_path / "captions.json"), "coco")


def conversation(image: str = "coffee", mask_id: str = "1") -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\n<mask>\nWhat is it?"}, {"from": "gpt", "value": "a cup"}]
    return {"id": 0, "image": image, "mask_id": mask_id, "conversations": turns}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({**conversation(), "conversations": []}, r"…/captions.jsonl line 1: key 'conversations' .* 0 "),
        ({**conversation(), "mask_id": None}, r"…/captions.jsonl line 1: key 'mask_id' is missing.*id, image"),
        (conversation(mask_id="none"), r"…/captions.jsonl line 1: image 'coffee' .*mask 'none'"),
        (conversation(image="tea"), r"…/captions.jsonl line 1: .* no image 'tea'.* 1 "),
    ],
)
def test_the_authors_file(record: dict[str, Any], expected: str, tmp_path: Path):
    path = write_lines(tmp_path, [record])
    assert re.match(expected, refused(tmp_path, path, "ureca_jsonl", str(photos_directory())))


def test_the_authors_file_needs_the_corpus(tmp_path: Path):
    with pytest.raises(ConfigError, match="captions.jsonl:.*--images"):
        import_regions(write_lines(tmp_path, [conversation()]), str(tmp_path / "back.parquet"), "ureca_jsonl")


def test_two_images_of_one_name_do_not_fit_into_the_authors_file(rows: list[ImageRow], tmp_path: Path):
    write_regions(tmp_path / "t.parquet", [rows[0], replace(rows[0], image_id="other/coffee")])
    with pytest.raises(UrecaError, match="'photos/coffee'.*'other/coffee'.*'coffee'"):
        export_regions(str(tmp_path / "t.parquet"), str(tmp_path / "captions.jsonl"), "ureca_jsonl")


def write_dataset(folder: Path, columns: dict[str, Any]) -> str:
    (folder / "dataset" / "data").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "dataset" / "data" / "train-00000.parquet")
    return str(folder / "dataset")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": [1]}, "image_id"),
        (
            {"image": [1], "image_id": ["a"], "height": [2], "width": [2], "regions": [[]]},
            "'image'",
        ),
        (
            {"image": [{"bytes": b"", "path": "a"}], "image_id": ["a"], "height": [2], "width": ["2"], "regions": [[]]},
            "'image_id'",
        ),
        (
            {
                "image": [{"bytes": b"", "path": "a"}],
                "image_id": ["a"],
                "height": [2],
                "width": [2],
                "regions": [[{"region_id": "1"}]],
            },
            "0: regions[0]",
        ),
    ],
)
def test_datasets(columns: dict[str, Any], expected: str, tmp_path: Path):
    found = refused(tmp_path, write_dataset(tmp_path, columns), "datasets")
    assert found.startswith("…/dataset/data/train-00000.parquet")
    assert expected in found


def test_a_data_set_is_not_written_over_another(table: str, tmp_path: Path):
    export_regions(table, str(tmp_path / "dataset"), "datasets")
    with pytest.raises(UrecaError, match="dataset"):
        export_regions(table, str(tmp_path / "dataset"), "datasets")
