"""Turn every row of a manifest into a row of a region table on Ray Data: once, whatever dies on the way.

    manifest.parquet --read--> blocks of a few rows --actors: RowWorker--> rows/*.parquet
                                                             checkpoint/ (ids of rows written)

Ray Data's row checkpoint resumes exactly this shape of plan: a read, stages in between, a write; a block is
written and checkpointed in one piece, so what dies with a process are the rows of its unfinished blocks. Ray Data
would by itself work on one block per actor; here every actor takes up so many that `images_in_flight` images are always
under way: one slow image keeps no place empty but its own.
"""

import asyncio
import contextlib
import logging
import math
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from ureca.cluster import connect
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.corpus.table import rows_to_table
from ureca.errors import StorageError, UrecaError
from ureca.pipeline.admission import AdmissionLimiter
from ureca.pipeline.budget import Budget
from ureca.pipeline.coordinator import BlockStatus, CrashCounts, JobCoordinator, JobStats, SharedBudget
from ureca.pipeline.errors import JobStopped
from ureca.pipeline.parts import Parts
from ureca.pipeline.usage import counts_of
from ureca.runs import Progress
from ureca.storage import files as io

_LOOK_EVERY_SECONDS = 1.0

OTHER_CPUS = 2
"""CPUs that must be free beside the actors: for reading and writing, and for leaving out what is done."""

_NO_PROGRESS_SECONDS = 6 * 3600.0
"""Ray Data gives up after half an hour without a finished block; slow endpoints and new machines take longer."""

_SMALLER = 8
"""An image whose process died is tried again in a company so many times smaller; then alone."""

_DISK_FULL = "No space left on device"
"""What the system says of it, however Ray wraps it."""

_SPARE_BLOCKS = 2
"""Blocks that wait at an actor, so that it does not idle while Ray Data hands it the next."""


class RowWorker(Protocol):
    """What an actor does with one image; works on many at once."""

    async def work(self, row: ManifestRow) -> ImageRow:
        """The image's row of the region table.

        Raises:
            JobStopped: neither this nor any other image can be worked on for now.
            Exception: a fault of this project; the job ends.
        """
        ...

    def counts(self) -> Counter[str]:
        """For the job's account: what was done since this was last asked, beside what the rows say."""
        ...

    async def close(self) -> None:
        """Let go of connections and processes."""
        ...


def shown_counts(stats: JobStats) -> dict[str, Any]:
    """What the line of progress says beside the images."""
    counts = stats.counts
    always = {"quarantined": counts["quarantined"]}
    return always | {name: counts[name] for name in ("flagged", "retries", "deaths") if counts[name]}


@dataclass(frozen=True, kw_only=True)
class RowsPlan:
    """How the rows are spread over a cluster."""

    label: str
    """What the lines of progress begin with."""
    num_images: int
    images_per_block: int
    images_in_flight: int
    """Of one actor."""
    actors: int
    """0: one per CPU of the cluster, less two for reading and writing; with GPUs one per share of them."""
    gpus_per_actor: float = 0.0
    crash_attempts: int = 2
    """How often the process of an image must die while the image is alone in it until it is set aside."""
    max_tokens: int = 0
    """Spending limit over all starts; 0: none."""
    shown: Callable[[JobStats], dict[str, Any]] = shown_counts
    """Name and value of what the line of progress says beside the images."""

    @property
    def num_blocks(self) -> int:
        """Blocks of a first start: each becomes one file of rows and one of their ids."""
        return math.ceil(self.num_images / self.images_per_block)

    @property
    def blocks_in_flight(self) -> int:
        """Blocks that an actor takes up at once: twice as many as hold the images that it works on.

        A block is out only when its last image is; what waits in the other half takes the places of those before.
        """
        return math.ceil(2 * self.images_in_flight / self.images_per_block)

    def num_actors(self, cpus: float, gpus: float) -> int:
        """Processes that work on rows, on a cluster that has this."""
        if self.actors:
            return self.actors
        room = int(gpus / self.gpus_per_actor) if self.gpus_per_actor else int(cpus) - OTHER_CPUS
        return max(1, min(room, self.num_blocks))


MakeWorker = Callable[[Budget | None, float], RowWorker]
"""Called once in every actor: with the job's budget, if it has a limit, and the share of the job that it is."""


class ImageCrashError(UrecaError):
    """An image ends the process that works on it."""


def cluster_resources() -> dict[str, float]:
    """Join or start Ray; how many CPUs and GPUs it has."""
    connect()
    # Only now: `connect` has to come before Ray is first imported.
    import ray

    resources: dict[str, float] = ray.cluster_resources()
    return resources


def run_rows(make_worker: MakeWorker, parts: Parts, plan: RowsPlan) -> JobStats:
    """Work on every row of the manifest that is not in the parts yet; returns what was done in this start.

    All rows are there then, unless the account says why not (`raise_unless_complete`).

    Raises:
        StorageError: a disk is full.
    """
    resources = cluster_resources()
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    coordinator: Any = (
        ray.remote(JobCoordinator)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(parts.spent if plan.max_tokens else "", plan.max_tokens)
    )
    filesystem, manifest = io.filesystem(parts.manifest)
    _, rows = io.filesystem(parts.rows)
    num_actors = plan.num_actors(resources.get("CPU", 0), resources.get("GPU", 0))
    _tell(plan, num_actors, resources)
    error: Exception | None = None
    interrupted = False
    try:
        with DataContext.current(_data_context(parts, filesystem)), _watched(coordinator, plan, parts.num_rows()):
            (
                ray.data.read_parquet(manifest, filesystem=filesystem)
                .repartition(target_num_rows_per_block=plan.images_per_block)
                .map_batches(
                    _Stage,
                    fn_constructor_kwargs={
                        "make_worker": make_worker,
                        "coordinator": coordinator,
                        "plan": plan,
                        "share": 1 / num_actors,
                    },
                    batch_size=plan.images_per_block,
                    batch_format="pyarrow",
                    num_cpus=1,
                    num_gpus=plan.gpus_per_actor or None,
                    compute=ActorPoolStrategy(
                        size=num_actors,
                        max_concurrent_calls_per_actor=plan.blocks_in_flight,
                        max_tasks_in_flight_per_actor=plan.blocks_in_flight + _SPARE_BLOCKS,
                    ),
                )
                .write_parquet(rows, filesystem=filesystem)
            )
    except KeyboardInterrupt:
        interrupted = True
    except Exception as raised:
        error = raised
    ray.get(coordinator.write.remote())
    stats: JobStats = ray.get(coordinator.stats.remote())
    stats.interrupted = interrupted
    ray.kill(coordinator)
    if error is not None and stats.stopped is None:
        if _DISK_FULL in str(error):
            raise StorageError(
                f"{parts.folder}: the disk is full that it, or what Ray puts aside (/tmp/ray), lies on. "
                "What is finished is kept: free some space, and the same command goes on."
            ) from error
        raise error
    return stats


def _data_context(parts: Parts, filesystem: Any) -> Any:
    """Ray Data's settings for a job that takes days, leaves nothing out and prints one line."""
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    for name, level in {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)  # it tells of each stage, and that its bars are off
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []  # advice on memory, in the middle of the progress lines
    context.print_on_execution_start = False
    # Its newer reader starts 32 processes to look at the footer of one manifest, and 32 more at the checkpoint's.
    context.use_datasource_v2 = False
    context.execution_no_progress_timeout_s = _NO_PROGRESS_SECONDS
    checkpoint = CheckpointConfig(
        id_column="image_id",
        checkpoint_path=parts.checkpoint,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,  # what the next start of the same command goes by
    )
    # An actor of Ray Data's own leaves out the rows that are done. One is enough for rows this small, and its
    # 1 GiB by default would keep a small machine waiting for ever.
    checkpoint.checkpoint_actor_pool_max_size = 1
    checkpoint.checkpoint_actor_memory_bytes = 256 * 2**20
    context.checkpoint_config = checkpoint
    return context


def _tell(plan: RowsPlan, num_actors: int, resources: dict[str, float]) -> None:
    print(f"{plan.label}  {plan.num_images:,} images, starting {num_actors} actors", file=sys.stderr, flush=True)
    needed = {"CPU": num_actors + OTHER_CPUS, "GPU": num_actors * plan.gpus_per_actor}
    for kind, number in needed.items():
        if number > resources.get(kind, 0):
            print(
                f"{plan.label}  waits until the cluster has {number:g} {kind}s for {num_actors} actors"
                f"{f' and {OTHER_CPUS} for reading and writing' if kind == 'CPU' else ''}; "
                f"it has {resources.get(kind, 0):g}",
                file=sys.stderr,
            )


class _Stage:
    """Ray Data's stage: blocks of manifest rows in, blocks of region table rows out. One per actor."""

    def __init__(self, make_worker: MakeWorker, coordinator: Any, plan: RowsPlan, share: float) -> None:
        import ray

        self._steward, self._crash_attempts = coordinator, plan.crash_attempts
        self._admission = AdmissionLimiter(plan.images_in_flight)
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        actor_id = str(ray.get_runtime_context().get_actor_id())
        coordinator.ready.remote(actor_id)
        self._worker = make_worker(
            SharedBudget(coordinator, actor_id, plan.max_tokens) if plan.max_tokens else None, share
        )

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        self._loop = asyncio.get_running_loop()
        rows = [ManifestRow.from_record(record) for record in block.to_pylist()]
        situation: BlockStatus = await self._steward.look.remote([row.image_id for row in rows])
        self._stopped = self._stopped or situation.stopped is not None
        if situation.stopped and situation.drained:
            raise situation.stopped  # what was finished has been written; the blocks left need not be gone through
        made = await asyncio.gather(
            *(self._one(row, situation.deaths.get(row.image_id, CrashCounts())) for row in rows)
        )
        yield rows_to_table(row for row in made if row is not None)

    async def _one(self, row: ManifestRow, deaths: CrashCounts) -> ImageRow | None:
        """The image's row; None where it is left to a later start."""
        if deaths.alone >= self._crash_attempts:
            quarantined = ImageRow.quarantined(row.image_id, row.image_path, "label", _crash(row, deaths))
            await self._steward.end.remote(row.image_id, counts_of(quarantined))
            return quarantined
        limit = (self._admission.most, self._admission.most // _SMALLER, 1)[min(deaths.all, 2)]
        async with self._admission.join(max(1, limit)):
            if self._stopped:
                return None
            await self._steward.begin.remote(row.image_id, limit <= 1)
            made: ImageRow | None = None
            try:
                made = await self._worker.work(row)
            except JobStopped as reason:
                await self._stop(reason)
            except StorageError as error:  # nothing is wrong with the image: the next would meet the same
                await self._stop(JobStopped(str(error)))
            counts = self._worker.counts() + (counts_of(made) if made else Counter())
            self._steward.end.remote(row.image_id, counts)
            return made

    async def _stop(self, reason: JobStopped) -> None:
        self._stopped = True
        await self._steward.stop.remote(reason)

    def __del__(self) -> None:
        """Ray Data drops its stage when an actor ends, in a thread of its own."""
        if self._loop is not None and self._loop.is_running():
            with contextlib.suppress(Exception):  # the process ends in any case
                asyncio.run_coroutine_threadsafe(self._worker.close(), self._loop).result(timeout=5)


def _crash(row: ManifestRow, deaths: CrashCounts) -> ImageCrashError:
    return ImageCrashError(
        f"{row.image_path}: the process that worked on it ended without a word {deaths.all} times, "
        f"{deaths.alone} of them with no other image in it. Look at the image and its masks for what is unusual; "
        "if the machine was short of memory, start fewer actors."
    )


@contextlib.contextmanager
def _watched(coordinator: Any, plan: RowsPlan, done_before: int) -> Iterator[None]:
    """Show how far the job is while the body runs."""
    import ray

    progress = Progress(plan.label, plan.num_images, unit="images")
    stop = threading.Event()

    def look() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster may be going down
            stats: JobStats = ray.get(coordinator.stats.remote(), timeout=30)
            # an image that was lost with its process before its block was written ends twice
            done = min(done_before + stats.counts["images"], plan.num_images)
            progress.update(done, in_progress=stats.in_progress, **plan.shown(stats))

    def keep_looking() -> None:
        while not stop.wait(_LOOK_EVERY_SECONDS):
            look()

    watcher = threading.Thread(target=keep_looking, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        look()
        progress.close()
