"""Labeling jobs whose processes, node or endpoint die: each image once in the table, no finished request repeated.

Real processes are killed, on a Ray cluster of two nodes; `make faults` repeats it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.labeling_faults import FaultCluster, fault_cluster, run_parts, run_poison, run_starts
from support.slow_endpoint import SlowEndpoint

from ureca.nano.scenes.files import write_scenes
from ureca.storage.files import read_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[FaultCluster]:
    with fault_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, range(12))
    return folder


def test_job_survives_death_of_actor_worker_node_and_endpoint(cluster, scenes, tmp_path):
    with SlowEndpoint(latency_s=0.1, slots=8, choice=1) as endpoint:
        outcome = run_parts(cluster, endpoint, scenes, tmp_path)
    assert (outcome.images, outcome.lost, outcome.duplicated) == (12, 0, 0)


def test_job_resumes_after_each_kind_of_stop(cluster, scenes, tmp_path):
    with SlowEndpoint(latency_s=0.1, slots=8, choice=1) as endpoint:
        outcome = run_starts(cluster, endpoint, scenes, tmp_path)
    assert (outcome.images, outcome.lost, outcome.duplicated, outcome.repeated_requests) == (12, 0, 0, 0)
    spent, lost, interrupted = outcome.last_lines
    assert spent.startswith("error: ")
    assert "200,000 tokens" in spent
    assert lost.startswith("error: ")
    assert "http://127.0.0.1" in lost
    assert interrupted == "interrupted; run the same command again to resume"
    usage = read_json(tmp_path / "usage.json")
    assert usage["table"]["images"] == 12
    assert usage["table"]["prompt_tokens"] == 1000 * usage["table"]["requests"] > 0
    assert 0 < usage["start"]["images"] < 12


def test_job_quarantines_image_that_kills_its_process(cluster, scenes, tmp_path):
    outcome = run_poison(cluster, scenes, tmp_path, poison="scene_000003")
    assert (outcome.images, outcome.lost, outcome.duplicated) == (12, 0, 0)
    assert outcome.last_lines == ["scene_000003: ImageCrashError"]
