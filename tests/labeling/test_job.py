"""Labeling job on a real Ray cluster, including a killed driver and the imports of an actor."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.paths import JOBS
from support.waiting import wait_until

from ureca.attributes.claims import attribute_hits
from ureca.corpus.ground_truth import read_ground_truth
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import canonical_digest, iter_images
from ureca.errors import InputError
from ureca.labeling.config import LabelConfig
from ureca.labeling.describers.openai_client import ChatConfig
from ureca.labeling.dry_run import plan_labeling
from ureca.labeling.job import LabelSummary, label_corpus
from ureca.pipeline.usage import PriceConfig
from ureca.storage.files import read_json

JOB = JOBS / "label_corpus.py"
SCENES = [f"scene_{seed:06d}" for seed in range(12)]


@pytest.fixture(scope="module")
def labeled(ray_cluster: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelSummary:
    """Summary of the corpus, labeled without interruption."""
    assert ray_cluster
    config = LabelConfig(sources=(str(corpus),), images_per_block=4, actors=2)
    return label_corpus(config, tmp_path_factory.mktemp("labeled"))


@pytest.fixture(scope="module")
def rows(labeled: LabelSummary) -> dict[str, ImageRow]:
    return {row.image_id: row for row in iter_images(labeled.table)}


def num_written(run: Path) -> int:
    return len(list((run / "regions.parquet.parts" / "rows").glob("*.parquet")))


@pytest.mark.slow
def test_label_corpus_each_image_once_labeled_or_quarantined(labeled, rows, bad_images):
    assert list(rows) == sorted([*bad_images, *SCENES])
    assert labeled.images == labeled.labeled + sum(labeled.quarantined.values()) == 17
    assert labeled.quarantined == dict(Counter(bad_images.values()))
    assert {image_id: row.error.kind for image_id, row in rows.items() if row.error} == bad_images


@pytest.mark.slow
def test_label_corpus_drawn_scenes_true_and_unique(labeled, rows, corpus):
    """Through JPEG and the mask tree, unlike the tests of the measurement itself."""
    truth = read_ground_truth(corpus)
    hits: dict[str, list[bool]] = {}
    for image_id in SCENES:
        for region in rows[image_id].regions:
            true = truth[image_id][region.region_id]
            assert region.attributes == true["attributes"]
            parent = rows[image_id].regions[region.parent].region_id if region.parent >= 0 else None
            assert parent == true["parent_id"]
            for caption in (region.short_caption, region.long_caption, region.caption):
                for name, hit in attribute_hits(caption, caption, true["attributes"]).items():
                    hits.setdefault(name, []).append(hit)
    assert {name: round(float(np.mean(found)), 2) >= 0.95 for name, found in hits.items()} == dict.fromkeys(
        ("color", "texture", "shape", "size", "place"), True
    )
    assert labeled.unique_share >= 0.99
    assert labeled.regions == sum(len(row.regions) for row in rows.values()) > 100


@pytest.mark.slow
def test_rerun_after_killed_driver_labels_each_image_once(ray_cluster, labeled, rows, corpus, tmp_path):
    command = [sys.executable, str(JOB), f"--sources={corpus}", f"--run_directory={tmp_path}"]
    command += ["--images_per_block=1"]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: num_written(tmp_path) >= 3 or driver.poll() is not None, 120)
        assert driver.poll() is None, driver.stderr.read()
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert num_written(tmp_path) < 17, "killed too late: nothing was left to do"
    assert not (tmp_path / "regions.parquet").exists()

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    errors = {row.image_id: row.error for row in iter_images(tmp_path / "regions.parquet") if row.error}
    assert errors == {image_id: row.error for image_id, row in rows.items() if row.error}
    assert canonical_digest(tmp_path / "regions.parquet") == labeled.digest
    parts = list((tmp_path / "regions.parquet.parts" / "rows").glob("*.parquet"))
    written = Counter(image_id for part in parts for image_id in pq.read_table(part)["image_id"].to_pylist())
    assert set(written.values()) == {1}
    assert len(written) == 17


@pytest.mark.slow
def test_label_corpus_finished_table_is_not_rewritten(labeled, corpus, capsys):
    before = Path(labeled.table).stat().st_mtime_ns
    config = LabelConfig(sources=(str(corpus),))
    again = label_corpus(config, Path(labeled.table).parent)
    assert again.digest == labeled.digest
    assert Path(labeled.table).stat().st_mtime_ns == before
    assert f"{labeled.table} exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_label_corpus_only_bad_images_raises(ray_cluster, corpus, tmp_path):
    assert ray_cluster
    with pytest.raises(InputError, match="5.*json_of_other_form"):
        label_corpus(LabelConfig(sources=(str(corpus / "bad"),), images_per_block=5), tmp_path)


@pytest.mark.slow
def test_plan_labeling_estimates_without_labeling(ray_cluster, corpus, tmp_path):
    assert ray_cluster
    plan = plan_labeling(LabelConfig(sources=(str(corpus),), images_per_block=4, actors=2), tmp_path)
    assert (plan["images"], plan["images_done"], plan["tasks"], plan["files"]) == (17, 0, 5, 10)
    assert (plan["actors"], plan["cpus"], plan["gpus"], plan["engines"]) == (2, 4, 0, 0)
    assert plan["requests"] == pytest.approx(3 * plan["regions"], abs=3)
    assert plan["sampled"]["images"] + plan["sampled"]["unreadable"] == 12
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["manifest.parquet"]
    chat = ChatConfig(base_url="http://localhost:1/v1", model="m")
    prices = PriceConfig(per_million_prompt_tokens=1.0)
    config = LabelConfig(sources=(str(corpus),), describer="chat", chat=chat, prices=prices)
    chat_plan = plan_labeling(config, tmp_path)
    assert 0 < chat_plan["requests"] < plan["requests"]
    assert chat_plan["estimated_money_for_tokens"] == pytest.approx(chat_plan["requests"] * 1500 / 1e6, abs=1e-4)


@pytest.mark.slow
def test_usage_report_equals_sums_of_rows(labeled, rows):
    usage = read_json(Path(labeled.table).parent / "usage.json")
    assert usage["table"]["images"] == 17
    assert usage["table"]["quarantined_by"] == labeled.quarantined
    assert usage["table"]["regions"] == labeled.regions
    assert usage["table"]["captions"] == 3 * labeled.regions
    requests = sum(sum(row.provenance.requests.values()) for row in rows.values() if row.provenance)
    assert usage["table"]["requests"] == requests
