"""Kill parts of labeling jobs while they run, and count what was lost, written twice or asked for again.

    python tests/support/labeling_faults.py --runs 5        (make faults)

A Ray cluster of two nodes on this machine, an HTTP endpoint that is slow, drawn scenes. Faults:

    parts     an actor, a process of Ray Data's, a node and the endpoint, one after the other in one run
    starts    stopped by its spending limit, by a lost endpoint, by Ctrl-C, then the driver is killed; each time
              started again
    poison    an image that ends every process that works on it
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

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it listens on loopback only

import psutil
import pyarrow.parquet as pq

from support.slow_endpoint import SlowEndpoint
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import iter_images

JOB = JOBS / "label_corpus.py"
FRAGILE_JOB = SUPPORT / "fragile_job.py"

STAGE = "_Stage"
"""Common part of the titles of the labeling actors' processes."""

SYSTEM = re.compile(r"ray::(\w*Agent|_\w+|ActorLocationTracker|JobCoordinator)\b")
"""Titles of what lives as long as the node (an agent's end is its node's) or the driver."""


@dataclass
class Outcome:
    """Outcome of one run, counted in images."""

    fault: str
    images: int
    lost: int
    duplicated: int
    asked_again: int | None = None
    """Questions that the endpoint answered more than once though nothing had to be asked again."""
    seconds: float = 0.0
    received: list[str] = field(default_factory=list)
    """Last line of every start that stopped."""


class FaultCluster:
    """Two nodes: one CPU next to the driver, three on a node that can be killed and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        store = 150 * 2**20
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": store}
        self._cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self._store = store
        self.add_node()

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return str(self._cluster.address)

    def add_node(self) -> None:
        """A machine joins."""
        self._node = _patiently(lambda: self._cluster.add_node(num_cpus=3, object_store_memory=self._store))

    def kill_node(self) -> None:
        """The machine that is not the driver's goes down, with all on it."""
        self._cluster.remove_node(self._node, allow_graceful=False)

    def processes(self) -> list[psutil.Process]:
        """Ray's workers, of both nodes; their names begin with `ray::`."""
        found = []
        for node in (self._cluster.head_node, self._node):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            found += [child for child in raylet.children(recursive=True) if _title(child).startswith("ray::")]
        return found

    def kill_worker(self, *, of_stage: bool) -> str:
        """End a labeling actor's process, or one of Ray Data's own, without a word; returns its title."""
        victims = [each for each in self.processes() if not SYSTEM.match(_title(each))]
        victim = random.choice([each for each in victims if (STAGE in _title(each)) is of_stage])
        title = _title(victim)
        victim.kill()
        return title

    def shutdown(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def _patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node half a minute to come up, which a busy machine may exceed."""
    for left in reversed(range(3)):
        try:
            return start()
        except Exception:
            if not left:
                raise
    return None


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()[:1])
    return ""


@contextlib.contextmanager
def fault_cluster() -> Iterator[FaultCluster]:
    """A cluster for as long as the body runs."""
    cluster = FaultCluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()


class Job:
    """A labeling job as a user starts it."""

    def __init__(self, cluster: FaultCluster, corpus: Path, out: Path, *options: str, script: Path = JOB) -> None:
        self.out, self.corpus = out, corpus
        self._command = [sys.executable, str(script), f"--sources={corpus}", f"--run_directory={out}"]
        self._command += ["--actors=2", "--images_per_block=2", "--images_in_flight=6", *options]
        self._environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> None:
        """Start it, or start it again."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "stderr.txt").open("a") as log:
            self._process = subprocess.Popen(
                [*self._command, *options],
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
                # a shell's background processes ignore it, and hand that on
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )

    def kill(self) -> None:
        """End the driver without a word."""
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        assert self._process
        self._process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self, seconds: float = 400) -> int:
        """Its exit code."""
        assert self._process
        return self._process.wait(seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 200) -> None:
        """Wait while it runs.

        Raises:
            RuntimeError: it ended before, or it took too long.
        """
        assert self._process
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the job did not come so far:\n{self.stderr()}")
            time.sleep(0.05)

    def stderr(self) -> str:
        """All that its starts have said."""
        return (self.out / "stderr.txt").read_text()

    def last_line(self) -> str:
        """Return the last line of a start that stopped."""
        return self.stderr().strip().splitlines()[-1]

    def written(self) -> Counter[str]:
        """Image id -> files of rows that it is in."""
        found: Counter[str] = Counter()
        for path in (self.out / "regions.parquet.parts" / "rows").glob("*.parquet"):
            with contextlib.suppress(Exception):  # being written
                found.update(pq.read_table(path, columns=["image_id"])["image_id"].to_pylist())
        return found

    def num_parts(self) -> int:
        """Blocks that are finished and checkpointed."""
        return len(list((self.out / "regions.parquet.parts" / "rows").glob("*.parquet")))

    def rows(self) -> dict[str, ImageRow]:
        """Its table."""
        return {row.image_id: row for row in iter_images(self.out / "regions.parquet")}

    def outcome(self, fault: str, started: float, **more: Any) -> Outcome:
        """Compare its table and its parts with its corpus."""
        wanted = {str(path.relative_to(self.corpus).with_suffix("")) for path in self.corpus.rglob("*.jpg")}
        table = [row.image_id for row in iter_images(self.out / "regions.parquet")]
        written = self.written()
        return Outcome(
            fault=fault,
            images=len(wanted),
            lost=len(wanted - set(table)) + len(wanted - set(written)),
            duplicated=len(table) - len(set(table)) + sum(count - 1 for count in written.values()),
            seconds=round(time.monotonic() - started, 1),
            **more,
        )


def chat_options(endpoint: SlowEndpoint) -> list[str]:
    """Options with which a job uses the slow endpoint."""
    return [
        "--describer=chat",
        f"--chat.base_url={endpoint.url}",
        f"--chat.model={endpoint.model}",
        "--chat.concurrency=8",
        "--distractors.max_count=1",
    ]


def run_parts(cluster: FaultCluster, endpoint: SlowEndpoint, corpus: Path, out: Path) -> Outcome:
    """An actor, a process of Ray Data's, a node and the endpoint die in one run."""
    started = time.monotonic()
    job = Job(cluster, corpus, out, *chat_options(endpoint))
    job.start()
    job.wait_for(lambda: job.num_parts() >= 1)
    cluster.kill_worker(of_stage=True)
    job.wait_for(lambda: job.num_parts() >= 2)
    cluster.kill_worker(of_stage=False)
    job.wait_for(lambda: job.num_parts() >= 3)
    endpoint.kill()
    time.sleep(2)
    endpoint.start()
    job.wait_for(lambda: job.num_parts() >= 4)
    # Whatever it holds: three of the four CPUs, but both actors may have come to lie on the other one.
    cluster.kill_node()
    cluster.add_node()
    if job.wait():
        raise RuntimeError(job.stderr())
    return job.outcome("parts", started)


def run_starts(cluster: FaultCluster, endpoint: SlowEndpoint, corpus: Path, out: Path) -> Outcome:
    """One table in five starts; the first four are stopped, interrupted or killed."""
    started = time.monotonic()
    job = Job(cluster, corpus, out, *chat_options(endpoint), "--chat.give_up_after_s=3")
    received = []
    unfinished: Counter[str] = Counter()

    def note_unfinished() -> None:
        unfinished.update(set(all_ids) - set(job.written()))

    all_ids = [path.stem for path in corpus.glob("*.jpg")]
    job.start("--chat.max_total_tokens=200000")
    if job.wait() != 2:
        raise RuntimeError(f"the spending limit did not stop the job:\n{job.stderr()}")
    received.append(job.last_line())
    note_unfinished()
    budget_parts = job.num_parts()

    job.start()
    job.wait_for(lambda: job.num_parts() > budget_parts)
    answered_again = endpoint.stats()["questions_answered_again"]
    endpoint.kill()
    if job.wait() != 2:
        raise RuntimeError(f"the lost endpoint did not stop the job:\n{job.stderr()}")
    received.append(job.last_line())
    lost_parts = job.num_parts()

    endpoint.start()
    job.start()
    job.wait_for(lambda: job.num_parts() > lost_parts)
    if job.interrupt() != 130:
        raise RuntimeError(f"Ctrl-C did not end the job as it should:\n{job.stderr()}")
    received.append(job.last_line())
    interrupted_parts = job.num_parts()

    endpoint.kill()
    endpoint.start()  # it has forgotten what it was asked: what follows is counted by itself
    job.start()
    job.wait_for(lambda: job.num_parts() > interrupted_parts)
    job.kill()
    time.sleep(1)  # what its actors had in progress
    left = set(all_ids) - set(job.written())
    job.start()
    if job.wait():
        raise RuntimeError(job.stderr())
    rows = job.rows()
    asked_for_left = sum(_num_asked(rows[each]) for each in left)
    asked_for_unfinished = sum(count * _num_asked(rows[each]) for each, count in unfinished.items())
    again = endpoint.stats()["questions_answered_again"]
    too_often = max(0, again - asked_for_left) + max(0, answered_again - asked_for_unfinished)
    return job.outcome("starts", started, asked_again=too_often, received=received)


def _num_asked(row: ImageRow) -> int:
    assert row.provenance
    return sum((row.provenance.requests or {}).values())


def run_poison(cluster: FaultCluster, corpus: Path, out: Path, *, poison: str) -> Outcome:
    """The image `poison` ends its process whenever it is worked on."""
    started = time.monotonic()
    job = Job(cluster, corpus, out, f"--poison={poison}", "--crash_attempts=2", script=FRAGILE_JOB)
    job.start()
    if job.wait():
        raise RuntimeError(job.stderr())
    rows = job.rows()
    quarantined = {image_id: row.error.kind for image_id, row in rows.items() if row.error}
    outcome = job.outcome("poison", started, received=[f"{name}: {kind}" for name, kind in quarantined.items()])
    if quarantined != {poison: "ImageCrashError"}:
        raise RuntimeError(f"quarantined were {quarantined}, not {poison} alone")
    return outcome


def run_all(corpus: Path, out: Path, runs: int) -> list[Outcome]:
    """Every fault `runs` times."""
    outcomes = []
    with fault_cluster() as cluster, SlowEndpoint(latency_s=0.1, slots=8, choice=1) as endpoint:
        for run in range(runs):
            for name, fault in {
                "parts": lambda where: run_parts(cluster, endpoint, corpus, where),
                "starts": lambda where: run_starts(cluster, endpoint, corpus, where),
                "poison": lambda where: run_poison(cluster, corpus, where, poison="scene_000003"),
            }.items():
                outcomes.append(fault(out / f"{name}_{run}"))
                print(json.dumps(asdict(outcomes[-1])), file=sys.stderr, flush=True)
    return outcomes


def summarize(outcomes: list[Outcome]) -> dict[str, int]:
    """faults.{runs, images, lost, duplicated, asked_again} of the benchmark."""
    return {
        "runs": len(outcomes),
        "images": sum(each.images for each in outcomes),
        "lost": sum(each.lost for each in outcomes),
        "duplicated": sum(each.duplicated for each in outcomes),
        "asked_again": sum(each.asked_again or 0 for each in outcomes),
    }
