"""Scenes as files: what was drawn is what is read."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ureca.corpus.ground_truth import read_ground_truth
from ureca.errors import InputError
from ureca.nano.scenes.draw import draw_scene
from ureca.nano.scenes.files import write_scenes


def test_masks_and_truth_come_back_as_drawn(tmp_path: Path):
    assert write_scenes(tmp_path / "drawn", [3, 123]) == ["scene_000003", "scene_000123"]
    truth = read_ground_truth(tmp_path / "drawn")
    assert list(truth) == ["scene_000003", "scene_000123"]
    scene = draw_scene(123)
    record = json.loads((tmp_path / "drawn" / "scene_000123.json").read_text())
    assert record["image"] == {
        "image_id": 123,
        "width": 256,
        "height": 256,
        "file_name": "scene_000123.jpg",
    }
    assert [entry["segmentation"] for entry in record["annotations"]] == [r.segmentation for r in scene.regions]
    assert {str(entry["id"]) for entry in record["annotations"]} == set(truth["scene_000123"])
    for region in scene.regions:
        received = truth["scene_000123"][region.region_id]
        assert received["attributes"] == region.attributes
        parent_id = scene.regions[region.parent].region_id if region.parent >= 0 else None
        assert received["parent_id"] == parent_id


def test_pairs_hold_no_truth(tmp_path: Path):
    write_scenes(tmp_path, [0])
    record = json.loads((tmp_path / "scene_000000.json").read_text())
    assert "attributes" not in json.dumps(record)
    assert "parent" not in json.dumps(record)


def test_the_photo_is_the_scene_up_to_jpeg(tmp_path: Path):
    write_scenes(tmp_path, [5])
    stored = np.asarray(Image.open(tmp_path / "scene_000005.jpg")).astype(np.int16)
    assert np.abs(stored - draw_scene(5).image).mean() < 6


def test_writing_again_replaces_the_truth(tmp_path: Path):
    write_scenes(tmp_path, [1, 2])
    write_scenes(tmp_path, [2])
    assert list(read_ground_truth(tmp_path)) == ["scene_000002"]


def test_a_folder_without_truth_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"ground_truth\.jsonl"):
        read_ground_truth(tmp_path)
