"""Captioning job on a real Ray cluster with real engines, including killed actors and drivers."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from support.caption_backends import TOKEN, TransformersBackend
from support.engine_processes import engine_processes, stage_processes
from support.live_server import on_a_port
from support.paths import JOBS
from support.waiting import wait_until

from ureca.captioning.config import CaptionConfig, EndpointConfig
from ureca.captioning.job import CaptionSummary, caption_corpus
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import canonical_digest, iter_images, load_image
from ureca.engine.config import EngineConfig
from ureca.errors import ConfigError
from ureca.model.captioner import Captioner
from ureca.model.internvl.presets import packaged_weights
from ureca.pipeline.errors import EndpointLost
from ureca.serving.api.app import create_app
from ureca.serving.api.backend import UnavailableError
from ureca.serving.settings import Limits
from ureca.storage.files import read_json

pytestmark = pytest.mark.slow

JOB = JOBS / "caption_corpus.py"
IDS = [f"scene_{seed:06d}" for seed in range(6)]
BROKEN = "scene_000002"
SETTINGS = {"images_per_block": 1, "images_in_flight": 2}


@pytest.fixture(scope="module")
def captioned(ray_cluster: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> CaptionSummary:
    """Summary of the corpus, captioned by nano without interruption."""
    assert ray_cluster
    return caption_corpus(CaptionConfig(sources=(str(corpus),), **SETTINGS), tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.from_pretrained(packaged_weights("captioner"))


def rows_of(table: str | Path) -> dict[str, ImageRow]:
    return {row.image_id: row for row in iter_images(table)}


def captions_of(table: str | Path) -> dict[tuple[str, str], str | None]:
    return {(row.image_id, region.region_id): region.caption for row in iter_images(table) for region in row.regions}


def written(run: Path) -> Counter[str]:
    """Return image id -> number of files of rows that hold the image."""
    parts = list((run / "regions.parquet.parts" / "rows").glob("*.parquet"))
    return Counter(image_id for part in parts for image_id in pq.read_table(part)["image_id"].to_pylist())


def num_written(run: Path) -> int:
    return len(list((run / "regions.parquet.parts" / "rows").glob("*.parquet")))


def test_caption_corpus_each_image_once_broken_quarantined(captioned):
    rows = rows_of(captioned.table)
    assert list(rows) == IDS
    assert captioned.images == captioned.captioned + sum(captioned.quarantined.values()) == 6
    assert captioned.quarantined == {"ImageError": 1}
    assert rows[BROKEN].error.step == "read"
    assert f"{BROKEN}.jpg" in rows[BROKEN].error.message
    assert captioned.captions == captioned.regions == sum(len(row.regions) for row in rows.values()) > 40
    provenance = rows[IDS[0]].provenance
    assert (provenance.describer, provenance.model) == ("captioner", captioned.model)
    assert captioned.model.startswith("captioner@sha256:")
    assert provenance.requests == {"unique": len(rows[IDS[0]].regions)}


def test_caption_corpus_captions_equal_transformers(captioned, captioner):
    row = rows_of(captioned.table)[IDS[0]]
    queries = [captioner.processor.query("unique")] * len(row.regions)
    expected = captioner.generate(load_image(row), [region.segmentation for region in row.regions], queries)
    assert [region.caption for region in row.regions] == expected
    assert len(set(expected)) > 1, "equal captions would prove nothing"


def test_usage_report_has_engine_utilization(captioned):
    figures = captioned.engine
    assert 0 < figures.engine_busy <= 1
    assert figures.regions_at_once > 1
    assert figures.start_seconds > 1
    assert figures.regions_per_second > captioned.regions / captioned.caption_seconds, (
        "the engine's start must not count"
    )
    assert 0.5 < figures.cached_share < 1, "the image prefix must be computed once"
    usage = read_json(Path(captioned.table).parent / "usage.json")
    assert usage["table"]["captions"] == captioned.captions
    assert 0 < usage["start"]["engine"]["busy_milliseconds"] <= usage["start"]["engine"]["milliseconds"]


def test_caption_corpus_finished_table_refuses_new_settings(captioned, corpus, capsys):
    folder = Path(captioned.table).parent
    again = caption_corpus(CaptionConfig(sources=(str(corpus),), **SETTINGS), folder)
    assert again.digest == captioned.digest
    assert f"{captioned.table} exists already" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="max_tokens, prompt_version"):
        caption_corpus(CaptionConfig(sources=(str(corpus),), max_tokens=9, styles=("brief", "unique")), folder)
    assert canonical_digest(captioned.table) == captioned.digest


def test_killed_actor_ends_its_engine_and_job_finishes(captioned, corpus, tmp_path):
    unrelated = set(engine_processes())

    def kill() -> None:
        wait_until(lambda: num_written(tmp_path) >= 2, 400)  # the broken image needs no engine
        [engine] = set(engine_processes()) - unrelated
        killed.extend((engine.parent(), engine))
        killed[0].kill()

    killed: list[psutil.Process] = []
    killer = threading.Thread(target=kill)
    killer.start()
    slow = EngineConfig(max_num_seqs=1)  # so that the job still runs when its actor is killed
    again = caption_corpus(CaptionConfig(sources=(str(corpus),), engine=slow, **SETTINGS), tmp_path)
    killer.join()
    _, alive = psutil.wait_procs(killed, timeout=10)
    assert not alive
    assert read_json(tmp_path / "usage.json")["start"]["process_crashes"] > 0, "killed too late: nothing was left to do"
    assert again.digest == captioned.digest
    assert written(tmp_path) == dict.fromkeys(IDS, 1)


def test_killed_driver_resumes_without_repeated_requests(ray_cluster, corpus, backend, service, tmp_path):
    command = [sys.executable, str(JOB), f"--sources={corpus}", f"--run_directory={tmp_path}"]
    command += [f"--endpoint.url={service}", "--images_per_block=1", "--images_in_flight=1"]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    backend.seconds = 1.0
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: num_written(tmp_path) >= 2 or driver.poll() is not None, 400)
        assert driver.poll() is None, driver.stderr.read()
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_until(lambda: not stage_processes(), 60)  # its actors end after it
    kept = num_written(tmp_path)
    assert kept < 6, "killed too late: nothing was left to do"
    backend.calls.clear()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert len(backend.calls) <= 6 - kept
    assert written(tmp_path) == dict.fromkeys(IDS, 1)
    assert TOKEN not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".yaml"))

    complete = caption_corpus(
        CaptionConfig(sources=(str(corpus),), endpoint=EndpointConfig(url=service)), tmp_path / "a"
    )
    assert canonical_digest(tmp_path / "regions.parquet") == complete.digest


def test_endpoint_captions_equal_engine_captions(ray_cluster, captioned, captioner, corpus, tmp_path):
    assert ray_cluster
    backend = TransformersBackend(captioner)
    with on_a_port(create_app({"nano": backend}, limits=Limits())) as url:
        endpoint = EndpointConfig(url=url, regions_per_request=8)
        summary = caption_corpus(CaptionConfig(sources=(str(corpus),), endpoint=endpoint, **SETTINGS), tmp_path)
    assert captions_of(summary.table) == captions_of(captioned.table)
    assert (summary.model, summary.quarantined) == ("nano", captioned.quarantined)
    assert max(len(call.regions) for call in backend.calls) == 8
    assert 0 < summary.engine.engine_busy <= 1


def test_lost_service_stops_job_and_same_command_resumes(ray_cluster, corpus, backend, service, tmp_path):
    assert ray_cluster
    endpoint = EndpointConfig(url=service, retries=0)
    config = CaptionConfig(sources=(str(corpus),), endpoint=endpoint, images_per_block=1, images_in_flight=1)
    backend.failure = UnavailableError("its engine was lost")
    with pytest.raises(EndpointLost, match=f"{re.escape(service)}: .*its engine was lost"):
        caption_corpus(config, tmp_path)
    backend.failure, backend.calls = None, []
    summary = caption_corpus(config, tmp_path)
    assert (summary.captioned, summary.quarantined) == (5, {"ImageError": 1})
    assert len(backend.calls) == 5
