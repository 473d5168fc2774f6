"""Kill parts of labeling jobs while they run; count images lost, images written twice and repeated requests.

Uses a Ray cluster of two nodes on this machine, a slow HTTP endpoint and drawn scenes. Faults:

    parts     one run in which an actor, a process of Ray Data, the endpoint and a node are killed in turn
    starts    one table in five starts, stopped by the token budget, a lost endpoint, Ctrl-C and a killed driver
    poison    an image that crashes every process that works on it

Library of tests/labeling/test_faults.py and benchmarks/labeling_faults.py.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from support.paths import JOBS, SUPPORT

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it ends with this process

import psutil
import pyarrow.parquet as pq

from support.slow_endpoint import SlowEndpoint
from support.waiting import wait_until
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import iter_images

JOB = JOBS / "label_corpus.py"
FRAGILE_JOB = SUPPORT / "fragile_job.py"

STAGE = "_Stage"
"""Part of the process titles of all labeling actors."""

SYSTEM = re.compile(r"ray::(\w*Agent|_\w+|ActorLocationTracker|JobCoordinator)\b")
"""Titles of processes that live as long as their node or the driver; killing an agent ends its node."""


@dataclass
class Outcome:
    """Outcome of one run, counted in images."""

    fault: str
    images: int
    lost: int
    duplicated: int
    repeated_requests: int | None = None
    """Requests that the endpoint answered again although a finished block held their answers."""
    seconds: float = 0.0
    last_lines: list[str] = field(default_factory=list)
    """Last line of every start that stopped; for `poison`, the quarantined images."""


class FaultCluster:
    """Ray cluster of two nodes: one CPU with the driver, three on a node that can be killed and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        store = 150 * 2**20
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": store}
        self._cluster = _with_retries(lambda: Cluster(initialize_head=True, head_node_args=head))
        self._store = store
        self.add_node()

    @property
    def address(self) -> str:
        """Value for RAY_ADDRESS."""
        return str(self._cluster.address)

    def add_node(self) -> None:
        """Add the second node."""
        self._node = _with_retries(lambda: self._cluster.add_node(num_cpus=3, object_store_memory=self._store))

    def kill_node(self) -> None:
        """Kill the second node with all its processes."""
        self._cluster.remove_node(self._node, allow_graceful=False)

    def processes(self) -> list[psutil.Process]:
        """Return the Ray workers of both nodes; their titles begin with `ray::`."""
        workers = []
        for node in (self._cluster.head_node, self._node):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            workers += [child for child in raylet.children(recursive=True) if _title(child).startswith("ray::")]
        return workers

    def kill_worker(self, *, of_stage: bool) -> str:
        """Kill the process of a labeling actor, or one of Ray Data's own; return its title."""
        workers = [process for process in self.processes() if not SYSTEM.match(_title(process))]
        victim = random.choice([process for process in workers if (STAGE in _title(process)) is of_stage])
        title = _title(victim)
        victim.kill()
        return title

    def wait_for_actors_to_end(self) -> None:
        """Wait until the labeling actors of a killed driver have ended: until then they may write blocks."""
        wait_until(lambda: not any(STAGE in _title(process) for process in self.processes()), 60)

    def shutdown(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def _with_retries(start: Callable[[], Any]) -> Any:
    """Start a node, up to three times: a busy machine may exceed Ray's start timeout of 30 seconds."""
    for retries_left in reversed(range(3)):
        try:
            return start()
        except Exception:
            if not retries_left:
                raise
    return None


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()[:1])
    return ""


@contextlib.contextmanager
def fault_cluster() -> Iterator[FaultCluster]:
    """Run the body with a cluster."""
    cluster = FaultCluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()


class Job:
    """A labeling job, started as a user would."""

    def __init__(self, cluster: FaultCluster, corpus: Path, out: Path, *options: str, script: Path = JOB) -> None:
        self.out, self.corpus = out, corpus
        self._command = [sys.executable, str(script), f"--sources={corpus}", f"--run_directory={out}"]
        self._command += ["--actors=2", "--images_per_block=2", "--images_in_flight=6", *options]
        self._environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> None:
        """Start the driver, or start it again."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "stderr.txt").open("a") as log:
            self._process = subprocess.Popen(
                [*self._command, *options],
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
                # background processes of a shell ignore SIGINT, and children inherit that
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )

    def kill(self) -> None:
        """Kill the driver."""
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def interrupt(self) -> int:
        """Send Ctrl-C; return the exit code."""
        assert self._process
        self._process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self, seconds: float = 400) -> int:
        """Wait for the end; return the exit code."""
        assert self._process
        return self._process.wait(seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 200) -> None:
        """Wait for a condition while the job runs.

        Raises:
            RuntimeError: the job ended first, or the timeout passed.
        """
        assert self._process
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the job ended or timed out before the awaited state:\n{self.stderr()}")
            time.sleep(0.05)

    def stderr(self) -> str:
        """Return the stderr of all starts."""
        return (self.out / "stderr.txt").read_text()

    def last_line(self) -> str:
        """Return the last line of a start that stopped."""
        return self.stderr().strip().splitlines()[-1]

    def written(self) -> Counter[str]:
        """Return image id -> number of files of rows that hold the image."""
        written: Counter[str] = Counter()
        for path in (self.out / "regions.parquet.parts" / "rows").glob("*.parquet"):
            with contextlib.suppress(Exception):  # being written
                written.update(pq.read_table(path, columns=["image_id"])["image_id"].to_pylist())
        return written

    def num_parts(self) -> int:
        """Return the number of finished blocks."""
        return len(list((self.out / "regions.parquet.parts" / "rows").glob("*.parquet")))

    def rows(self) -> dict[str, ImageRow]:
        """Return image id -> row of the table."""
        return {row.image_id: row for row in iter_images(self.out / "regions.parquet")}

    def outcome(self, fault: str, started: float, **more: Any) -> Outcome:
        """Compare the table and its parts with the corpus."""
        expected = {str(path.relative_to(self.corpus).with_suffix("")) for path in self.corpus.rglob("*.jpg")}
        table = [row.image_id for row in iter_images(self.out / "regions.parquet")]
        written = self.written()
        return Outcome(
            fault=fault,
            images=len(expected),
            lost=len(expected - set(table)) + len(expected - set(written)),
            duplicated=len(table) - len(set(table)) + sum(count - 1 for count in written.values()),
            seconds=round(time.monotonic() - started, 1),
            **more,
        )


def chat_options(endpoint: SlowEndpoint) -> list[str]:
    """Return the options with which a job uses the slow endpoint."""
    return [
        "--describer=chat",
        f"--chat.base_url={endpoint.url}",
        f"--chat.model={endpoint.model}",
        "--chat.concurrency=8",
        "--distractors.max_count=1",
    ]


def run_parts(cluster: FaultCluster, endpoint: SlowEndpoint, corpus: Path, out: Path) -> Outcome:
    """Kill an actor, a process of Ray Data, the endpoint and a node in one run."""
    started = time.monotonic()
    job = Job(cluster, corpus, out, *chat_options(endpoint))
    job.start()
    job.wait_for(lambda: job.num_parts() >= 1)
    cluster.kill_worker(of_stage=True)
    job.wait_for(lambda: job.num_parts() >= 2)
    cluster.kill_worker(of_stage=False)
    job.wait_for(lambda: job.num_parts() >= 3)
    endpoint.kill()
    time.sleep(2)  # the outage: requests must be retried
    endpoint.start()
    job.wait_for(lambda: job.num_parts() >= 4)
    # The node has three of four CPUs, but by now both actors may run on the other node.
    cluster.kill_node()
    cluster.add_node()
    if job.wait():
        raise RuntimeError(job.stderr())
    return job.outcome("parts", started)


def run_starts(cluster: FaultCluster, endpoint: SlowEndpoint, corpus: Path, out: Path) -> Outcome:
    """Label one table in five starts, of which the first four are stopped, interrupted or killed."""
    started = time.monotonic()
    job = Job(cluster, corpus, out, *chat_options(endpoint), "--chat.give_up_after_s=3")
    last_lines = []
    unfinished: Counter[str] = Counter()

    def note_unfinished() -> None:
        unfinished.update(set(all_ids) - set(job.written()))

    all_ids = [path.stem for path in corpus.glob("*.jpg")]
    # first start: the token budget is spent
    job.start("--chat.max_total_tokens=200000")
    if job.wait() != 2:
        raise RuntimeError(f"the token budget did not stop the job:\n{job.stderr()}")
    last_lines.append(job.last_line())
    note_unfinished()
    budget_parts = job.num_parts()

    # second start: the endpoint is lost
    job.start()
    job.wait_for(lambda: job.num_parts() > budget_parts)
    answered_before = endpoint.stats()["repeated_answers"]
    endpoint.kill()
    if job.wait() != 2:
        raise RuntimeError(f"the lost endpoint did not stop the job:\n{job.stderr()}")
    last_lines.append(job.last_line())
    lost_parts = job.num_parts()

    # third start: Ctrl-C
    endpoint.start()
    job.start()
    job.wait_for(lambda: job.num_parts() > lost_parts)
    if job.interrupt() != 130:
        raise RuntimeError(f"Ctrl-C did not end the job with exit code 130:\n{job.stderr()}")
    last_lines.append(job.last_line())
    interrupted_parts = job.num_parts()

    # fourth start: the driver is killed
    endpoint.kill()
    endpoint.start()  # with empty counts
    job.start()
    job.wait_for(lambda: job.num_parts() > interrupted_parts)
    job.kill()
    cluster.wait_for_actors_to_end()
    # fifth start: finishes
    remaining = set(all_ids) - set(job.written())
    job.start()
    if job.wait():
        raise RuntimeError(job.stderr())
    rows = job.rows()
    # requests of unfinished blocks may be repeated, once per stop
    allowed_after = sum(_num_requests(rows[image_id]) for image_id in remaining)
    allowed_before = sum(count * _num_requests(rows[image_id]) for image_id, count in unfinished.items())
    answered_after = endpoint.stats()["repeated_answers"]
    repeated = max(0, answered_after - allowed_after) + max(0, answered_before - allowed_before)
    return job.outcome("starts", started, repeated_requests=repeated, last_lines=last_lines)


def _num_requests(row: ImageRow) -> int:
    assert row.provenance
    return sum((row.provenance.requests or {}).values())


def run_poison(cluster: FaultCluster, corpus: Path, out: Path, *, poison: str) -> Outcome:
    """Label a corpus in which the image `poison` crashes every process that works on it."""
    started = time.monotonic()
    job = Job(cluster, corpus, out, f"--poison={poison}", "--crash_attempts=2", script=FRAGILE_JOB)
    job.start()
    if job.wait():
        raise RuntimeError(job.stderr())
    rows = job.rows()
    quarantined = {image_id: row.error.kind for image_id, row in rows.items() if row.error}
    outcome = job.outcome("poison", started, last_lines=[f"{name}: {kind}" for name, kind in quarantined.items()])
    if quarantined != {poison: "ImageCrashError"}:
        raise RuntimeError(f"expected only {poison} to be quarantined, found {quarantined}")
    return outcome


def run_all(corpus: Path, out: Path, runs: int) -> list[Outcome]:
    """Run every fault `runs` times."""
    outcomes = []
    with fault_cluster() as cluster, SlowEndpoint(latency_s=0.1, slots=8, choice=1) as endpoint:
        for run in range(runs):
            for name, fault in {
                "parts": lambda folder: run_parts(cluster, endpoint, corpus, folder),
                "starts": lambda folder: run_starts(cluster, endpoint, corpus, folder),
                "poison": lambda folder: run_poison(cluster, corpus, folder, poison="scene_000003"),
            }.items():
                outcomes.append(fault(out / f"{name}_{run}"))
                print(json.dumps(asdict(outcomes[-1])), file=sys.stderr, flush=True)
    return outcomes


def summarize(outcomes: list[Outcome]) -> dict[str, int]:
    """Return the benchmark's totals over all runs."""
    return {
        "runs": len(outcomes),
        "images": sum(outcome.images for outcome in outcomes),
        "lost": sum(outcome.lost for outcome in outcomes),
        "duplicated": sum(outcome.duplicated for outcome in outcomes),
        "repeated_requests": sum(outcome.repeated_requests or 0 for outcome in outcomes),
    }
