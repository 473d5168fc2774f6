"""Captioning on a real Ray with real engines: only there it shows what survives a killed actor or driver."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from support.caption_backends import TOKEN, TransformersBackend
from support.engine_processes import engine_processes
from support.live_server import on_a_port
from support.paths import JOBS

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
    """The corpus, captioned by nano without interruption."""
    assert ray_cluster
    return caption_corpus(CaptionConfig(sources=(str(corpus),), **SETTINGS), tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.from_pretrained(packaged_weights("captioner"))


def rows_of(table: str | Path) -> dict[str, ImageRow]:
    return {row.image_id: row for row in iter_images(table)}


def captions_of(table: str | Path) -> dict[tuple[str, str], str | None]:
    return {(row.image_id, each.region_id): each.caption for row in iter_images(table) for each in row.regions}


def wait_until(condition: Callable[[], bool], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def written(run: Path) -> Counter[str]:
    """Image id -> how often it was written."""
    parts = list((run / "regions.parquet.parts" / "rows").glob("*.parquet"))
    return Counter(image_id for part in parts for image_id in pq.read_table(part)["image_id"].to_pylist())


def num_written(run: Path) -> int:
    return len(list((run / "regions.parquet.parts" / "rows").glob("*.parquet")))


def test_each_image_once_and_the_broken_one_with_its_reason(captioned):
    rows = rows_of(captioned.table)
    assert list(rows) == IDS
    assert captioned.images == captioned.captioned + sum(captioned.quarantined.values()) == 6
    assert captioned.quarantined == {"ImageError": 1}
    assert rows[BROKEN].error.step == "read"
    assert f"{BROKEN}.jpg" in rows[BROKEN].error.message
    assert captioned.captions == captioned.regions == sum(len(row.regions) for row in rows.values()) > 40
    made = rows[IDS[0]].provenance
    assert (made.describer, made.model) == ("captioner", captioned.model)
    assert captioned.model.startswith("captioner@sha256:")
    assert made.requests == {"unique": len(rows[IDS[0]].regions)}


def test_captions_are_those_that_transformers_gives(captioned, captioner):
    row = rows_of(captioned.table)[IDS[0]]
    asked = [captioner.processor.query("unique")] * len(row.regions)
    received = captioner.generate(load_image(row), [each.segmentation for each in row.regions], asked)
    assert [each.caption for each in row.regions] == received
    assert len(set(received)) > 1, "alike captions would prove nothing"


def test_the_account_says_how_busy_the_engine_was(captioned):
    figures = captioned.engine
    assert 0 < figures.engine_busy <= 1
    assert figures.regions_at_once > 1
    assert figures.start_seconds > 1
    assert figures.regions_per_second > captioned.regions / captioned.caption_seconds, "the start is left out"
    assert 0.5 < figures.cached_share < 1, "the image is computed once for all its regions"
    usage = read_json(Path(captioned.table).parent / "usage.json")
    assert usage["table"]["captions"] == captioned.captions
    assert 0 < usage["start"]["engine"]["busy_milliseconds"] <= usage["start"]["engine"]["milliseconds"]


def test_a_finished_table_is_not_made_again_and_not_with_other_settings(captioned, corpus, capsys):
    folder = Path(captioned.table).parent
    again = caption_corpus(CaptionConfig(sources=(str(corpus),), **SETTINGS), folder)
    assert again.digest == captioned.digest
    assert "is there already, of the same images and settings" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="max_tokens, prompt_version"):
        caption_corpus(CaptionConfig(sources=(str(corpus),), max_tokens=9, styles=("brief", "unique")), folder)
    assert canonical_digest(captioned.table) == captioned.digest


def test_a_killed_actor_takes_its_engine_along_and_the_job_goes_on_with_another(captioned, corpus, tmp_path):
    others = set(engine_processes())

    def kill() -> None:
        wait_until(lambda: num_written(tmp_path) >= 2)  # the broken image needs no engine
        [engine] = set(engine_processes()) - others
        killed.extend((engine.parent(), engine))
        killed[0].kill()

    killed: list[psutil.Process] = []
    killer = threading.Thread(target=kill)
    killer.start()
    slow = EngineConfig(max_num_seqs=1)  # so that the killing comes in time
    again = caption_corpus(CaptionConfig(sources=(str(corpus),), engine=slow, **SETTINGS), tmp_path)
    killer.join()
    _, alive = psutil.wait_procs(killed, timeout=10)
    assert not alive
    assert read_json(tmp_path / "usage.json")["start"]["process_deaths"] > 0, "killed too late to show anything"
    assert again.digest == captioned.digest
    assert written(tmp_path) == dict.fromkeys(IDS, 1)


def test_a_job_whose_driver_was_killed_goes_on_and_asks_nothing_twice(ray_cluster, corpus, backend, service, tmp_path):
    command = [sys.executable, str(JOB), f"--sources={corpus}", f"--run_directory={tmp_path}"]
    command += [f"--endpoint.url={service}", "--images_per_block=1", "--images_in_flight=1"]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    backend.seconds = 1.0
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: num_written(tmp_path) >= 2 or driver.poll() is not None)
        assert driver.poll() is None, driver.stderr.read()
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    time.sleep(3)  # its actors end with it, but not at once
    kept = num_written(tmp_path)
    assert kept < 6, "killed too late to show anything"
    backend.calls.clear()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert len(backend.calls) <= 6 - kept
    assert written(tmp_path) == dict.fromkeys(IDS, 1)
    assert TOKEN not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".yaml"))

    whole = caption_corpus(CaptionConfig(sources=(str(corpus),), endpoint=EndpointConfig(url=service)), tmp_path / "a")
    assert canonical_digest(tmp_path / "regions.parquet") == whole.digest


def test_a_service_with_the_same_weights_gives_the_same_captions(ray_cluster, captioned, captioner, corpus, tmp_path):
    assert ray_cluster
    backend = TransformersBackend(captioner)
    with on_a_port(create_app({"nano": backend}, limits=Limits())) as url:
        endpoint = EndpointConfig(url=url, regions_per_request=8)
        summary = caption_corpus(CaptionConfig(sources=(str(corpus),), endpoint=endpoint, **SETTINGS), tmp_path)
    assert captions_of(summary.table) == captions_of(captioned.table)
    assert (summary.model, summary.quarantined) == ("nano", captioned.quarantined)
    assert max(len(call.regions) for call in backend.calls) == 8
    assert 0 < summary.engine.engine_busy <= 1


def test_a_service_that_is_lost_stops_the_job_and_the_same_command_goes_on(
    ray_cluster, corpus, backend, service, tmp_path
):
    assert ray_cluster
    endpoint = EndpointConfig(url=service, retries=0)
    config = CaptionConfig(sources=(str(corpus),), endpoint=endpoint, images_per_block=1, images_in_flight=1)
    backend.failure = UnavailableError("its engine was lost")
    with pytest.raises(EndpointLost, match="captioned"):
        caption_corpus(config, tmp_path)
    backend.failure, backend.calls = None, []
    summary = caption_corpus(config, tmp_path)
    assert (summary.captioned, summary.quarantined) == (5, {"ImageError": 1})
    assert len(backend.calls) == 5
