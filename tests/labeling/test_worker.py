"""Worker of a labeling job."""

import asyncio
from pathlib import Path

import pytest

from ureca.corpus.ground_truth import read_ground_truth
from ureca.corpus.sources.manifest import ManifestRow
from ureca.labeling.config import LabelConfig
from ureca.labeling.worker import DescriberRecipe, LabelWorker
from ureca.nano.scenes.files import write_scenes
from ureca.pipeline.errors import JobStopped


def row_of(folder: Path) -> ManifestRow:
    write_scenes(folder, range(1))
    path = folder / "scene_000000.jpg"
    return ManifestRow(
        image_id="any/scene", image_path=str(path), masks_path=str(path.with_suffix(".json")), masks_kind="record"
    )


def worker_of(folder: Path) -> LabelWorker:
    return LabelWorker(DescriberRecipe.read(LabelConfig(sources=(str(folder),))), None, 1.0)


def test_work_copies_ground_truth_next_to_the_image(tmp_path: Path):
    labeled = asyncio.run(worker_of(tmp_path).work(row_of(tmp_path)))
    truth = read_ground_truth(tmp_path)["scene_000000"]
    assert {region.region_id: region.attributes for region in labeled.regions} == {
        region_id: region["attributes"] for region_id, region in truth.items()
    }


def test_work_without_ground_truth_has_no_attributes(tmp_path: Path):
    row = row_of(tmp_path)
    (tmp_path / "ground_truth.jsonl").unlink()
    labeled = asyncio.run(worker_of(tmp_path).work(row))
    assert labeled.status == "labeled"
    assert all(region.attributes is None for region in labeled.regions)


def test_work_malformed_ground_truth_stops_the_job(tmp_path: Path):
    row = row_of(tmp_path)
    (tmp_path / "ground_truth.jsonl").write_text("{\n")
    with pytest.raises(JobStopped, match=r"ground_truth\.jsonl: line 1"):
        asyncio.run(worker_of(tmp_path).work(row))
