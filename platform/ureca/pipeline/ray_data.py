"""Turn every row of a manifest into exactly one row of a region table, on Ray Data.

    manifest.parquet --read--> blocks of a few rows --actors: RowWorker--> rows/*.parquet
                                                             checkpoint/ (ids of rows written)

Ray Data's row checkpoint resumes exactly this shape of plan: a read, stages in between, a write. A block is written and
checkpointed atomically, so a crash loses only the rows of unfinished blocks. By default Ray Data gives each actor one
block at a time. Here every actor holds enough blocks to keep `images_in_flight` images in progress, so a slow image
blocks only its own slot.
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

from ureca.cluster import autoscaling_maximum, connect
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

_POLL_SECONDS = 1.0

OTHER_CPUS = 2
"""CPUs to leave free besides the actors: for reading, writing, and skipping finished rows."""

_NO_PROGRESS_SECONDS = 6 * 3600.0
"""Ray Data's default gives up after 30 minutes without a finished block; slow endpoints and new machines take
longer."""

_SUSPECT_FRACTION = 8
"""After its first crash an image is retried among this many times fewer images; then alone."""

_DISK_FULL = "No space left on device"
"""The operating system's message, which Ray wraps in several ways."""

_SPARE_BLOCKS = 2
"""Blocks queued per actor, so that it does not idle while Ray Data sends the next one."""


class RowWorker(Protocol):
    """Processes images in an actor, many of them concurrently."""

    async def work(self, row: ManifestRow) -> ImageRow:
        """Return the image's row of the region table.

        Raises:
            JobStopped: neither this nor any other image can be processed for now.
            Exception: a bug; the job ends.
        """
        ...

    def counts(self) -> Counter[str]:
        """Return counts since the last call, for the job's totals, besides those in the rows."""
        ...

    async def close(self) -> None:
        """Close connections and end child processes."""
        ...


def default_progress_counts(stats: JobStats) -> dict[str, Any]:
    """Return the counts to show on the progress line, besides images."""
    counts = stats.counts
    shown = {"quarantined": counts["quarantined"]}
    return shown | {name: counts[name] for name in ("flagged", "retries", "crashes") if counts[name]}


@dataclass(frozen=True, kw_only=True)
class RowsPlan:
    """Distribution of the rows over a cluster."""

    label: str
    """Prefix of progress lines."""
    num_images: int
    images_per_block: int
    images_in_flight: int
    """Images in progress per actor."""
    actors: int
    """Number of actors. 0: one per CPU of the cluster less two for reading and writing; with GPUs, one per GPU
    share."""
    gpus_per_actor: float = 0.0
    crash_attempts: int = 2
    """Crashes of a process that holds only one image before that image is quarantined."""
    max_tokens: int = 0
    """Token budget over all starts. 0: none."""
    progress_counts: Callable[[JobStats], dict[str, Any]] = default_progress_counts
    """Names and values to show on the progress line, besides images."""

    @property
    def num_blocks(self) -> int:
        """Blocks of a first start; each becomes one file of rows and one of ids."""
        return math.ceil(self.num_images / self.images_per_block)

    @property
    def blocks_in_flight(self) -> int:
        """Blocks that an actor holds: twice as many as its images in progress need.

        A block is finished only when its last image is; images of the other half fill the slots of finished ones.
        """
        return math.ceil(2 * self.images_in_flight / self.images_per_block)

    def num_actors(self, cpus: float, gpus: float) -> int:
        """Return the number of actors for a cluster with these resources."""
        if self.actors:
            return self.actors
        capacity = int(gpus / self.gpus_per_actor) if self.gpus_per_actor else int(cpus) - OTHER_CPUS
        return max(1, min(capacity, self.num_blocks))


MakeWorker = Callable[[Budget | None, float], RowWorker]
"""Creates the worker of an actor, from the job's budget (None: unlimited) and the actor's share of the job."""


class ImageCrashError(UrecaError):
    """The process of an image crashes whenever it processes that image."""


def cluster_resources() -> dict[str, float]:
    """Join or start Ray; return its CPUs and GPUs after scaling to its maximum."""
    connect()
    # Imported late: `connect` must run before Ray is first imported.
    import ray

    now: dict[str, float] = ray.cluster_resources()
    grown = autoscaling_maximum()
    return {name: max(now.get(name, 0), grown.get(name, 0)) for name in {*now, *grown}}


def run_rows(make_worker: MakeWorker, parts: Parts, plan: RowsPlan) -> JobStats:
    """Process every manifest row that the parts lack; return the totals of this start.

    All rows exist afterwards, unless the totals say otherwise (`raise_unless_complete`).

    Raises:
        StorageError: a disk is full.
    """
    # Coordinator, on the driver's node: it must outlive every other node.
    largest = cluster_resources()
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    coordinator: Any = (
        ray.remote(JobCoordinator)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=driver_node)
        .remote(parts.spent if plan.max_tokens else "", plan.max_tokens)
    )
    # Ray Data: read blocks of the manifest, process them in actors, write rows.
    filesystem, manifest = io.filesystem(parts.manifest)
    _, rows = io.filesystem(parts.rows)
    resources = ray.cluster_resources()
    num_actors, max_actors = (plan.num_actors(each.get("CPU", 0), each.get("GPU", 0)) for each in (resources, largest))
    _report_start(plan, num_actors, max_actors, resources)
    error: Exception | None = None
    interrupted = False
    try:
        with DataContext.current(_data_context(parts, filesystem)), _progress_line(coordinator, plan, parts.num_rows()):
            (
                ray.data.read_parquet(manifest, filesystem=filesystem)
                .repartition(target_num_rows_per_block=plan.images_per_block)
                .map_batches(
                    _Stage,
                    fn_constructor_kwargs={
                        "make_worker": make_worker,
                        "coordinator": coordinator,
                        "plan": plan,
                        "share": 1 / max_actors,
                    },
                    batch_size=plan.images_per_block,
                    batch_format="pyarrow",
                    num_cpus=1,
                    num_gpus=plan.gpus_per_actor or None,
                    compute=ActorPoolStrategy(
                        min_size=num_actors,
                        max_size=max_actors,
                        max_concurrent_calls_per_actor=plan.blocks_in_flight,
                        max_tasks_in_flight_per_actor=plan.blocks_in_flight + _SPARE_BLOCKS,
                    ),
                )
                .write_parquet(rows, filesystem=filesystem)
            )
    except KeyboardInterrupt:
        interrupted = True
    except Exception as failure:
        error = failure
    # Totals and the reason of an early end.
    ray.get(coordinator.write.remote())
    stats: JobStats = ray.get(coordinator.stats.remote())
    stats.interrupted = interrupted
    ray.kill(coordinator)
    if error is not None and stats.stopped is None:
        if _DISK_FULL in str(error):
            raise StorageError(
                f"{parts.folder}: the disk of this folder, or of Ray's spilled objects (/tmp/ray), is full. Finished "
                "images are kept: free some space, and the same command resumes the job."
            ) from error
        raise error
    return stats


def _data_context(parts: Parts, filesystem: Any) -> Any:
    """Return Ray Data's settings for a job that takes days, loses no row and prints one line."""
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    for name, level in {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)  # otherwise it logs every stage and that its progress bars are off
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []  # memory advice would interrupt the progress line
    context.print_on_execution_start = False
    # The newer reader starts 32 processes to read the footer of one manifest, and 32 more for the checkpoint's.
    context.use_datasource_v2 = False
    context.execution_no_progress_timeout_s = _NO_PROGRESS_SECONDS
    checkpoint = CheckpointConfig(
        id_column="image_id",
        checkpoint_path=parts.checkpoint,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,  # the next start resumes from it
    )
    # A Ray Data actor skips finished rows. One is enough for rows this small, and its default of 1 GiB would make a
    # small machine wait forever.
    checkpoint.checkpoint_actor_pool_max_size = 1
    checkpoint.checkpoint_actor_memory_bytes = 256 * 2**20
    context.checkpoint_config = checkpoint
    return context


def _report_start(plan: RowsPlan, num_actors: int, max_actors: int, resources: dict[str, float]) -> None:
    growth = f", up to {max_actors} as the cluster grows" if max_actors > num_actors else ""
    print(
        f"{plan.label}  {plan.num_images:,} images, starting {num_actors} actors{growth}", file=sys.stderr, flush=True
    )
    needed = {"CPU": num_actors + OTHER_CPUS, "GPU": num_actors * plan.gpus_per_actor}
    for kind, number in needed.items():
        if number > resources.get(kind, 0):
            print(
                f"{plan.label}  waiting for {number:g} {kind}s for {num_actors} "
                f"actors{f' and {OTHER_CPUS} for reading and writing' if kind == 'CPU' else ''}; the cluster has "
                f"{resources.get(kind, 0):g}",
                file=sys.stderr,
            )


class _Stage:
    """Ray Data stage of one actor: turns blocks of manifest rows into blocks of region table rows."""

    def __init__(self, make_worker: MakeWorker, coordinator: Any, plan: RowsPlan, share: float) -> None:
        import ray

        self._coordinator, self._crash_attempts = coordinator, plan.crash_attempts
        self._admission = AdmissionLimiter(plan.images_in_flight)
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        actor_id = str(ray.get_runtime_context().get_actor_id())
        coordinator.register.remote(actor_id)
        self._worker = make_worker(
            SharedBudget(coordinator, actor_id, plan.max_tokens) if plan.max_tokens else None, share
        )

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        self._loop = asyncio.get_running_loop()
        rows = [ManifestRow.from_record(record) for record in block.to_pylist()]
        status: BlockStatus = await self._coordinator.block_status.remote([row.image_id for row in rows])
        self._stopped = self._stopped or status.stopped is not None
        if status.stopped and status.drained:
            raise status.stopped  # finished rows are written by now; skip the remaining blocks
        image_rows = await asyncio.gather(
            *(self._process(row, status.crashes.get(row.image_id, CrashCounts())) for row in rows)
        )
        yield rows_to_table(row for row in image_rows if row is not None)

    async def _process(self, row: ManifestRow, crashes: CrashCounts) -> ImageRow | None:
        """Return the image's row; None leaves it to a later start."""
        if crashes.alone >= self._crash_attempts:
            quarantined = ImageRow.quarantined(row.image_id, row.image_path, "label", _crash_error(row, crashes))
            await self._coordinator.end.remote(row.image_id, counts_of(quarantined))
            return quarantined
        limit = (self._admission.max_images, self._admission.max_images // _SUSPECT_FRACTION, 1)[min(crashes.all, 2)]
        async with self._admission.admit(max(1, limit)):
            if self._stopped:
                return None
            await self._coordinator.begin.remote(row.image_id, limit <= 1)
            image_row: ImageRow | None = None
            try:
                image_row = await self._worker.work(row)
            except JobStopped as reason:
                await self._stop(reason)
            except StorageError as error:  # not the image's fault: the next image would fail the same way
                await self._stop(JobStopped(str(error)))
            counts = self._worker.counts() + (counts_of(image_row) if image_row else Counter())
            self._coordinator.end.remote(row.image_id, counts)
            return image_row

    async def _stop(self, reason: JobStopped) -> None:
        self._stopped = True
        await self._coordinator.stop.remote(reason)

    def __del__(self) -> None:
        """Close the worker. Ray Data drops its stage in a separate thread when an actor ends."""
        if self._loop is not None and self._loop.is_running():
            with contextlib.suppress(Exception):  # the process ends in any case
                asyncio.run_coroutine_threadsafe(self._worker.close(), self._loop).result(timeout=5)


def _crash_error(row: ManifestRow, crashes: CrashCounts) -> ImageCrashError:
    return ImageCrashError(
        f"{row.image_path}: the process working on this image crashed {crashes.all} times, {crashes.alone} of them "
        "with no other image in progress. Inspect the image and its masks; if the machine was short of memory, start "
        "fewer actors."
    )


@contextlib.contextmanager
def _progress_line(coordinator: Any, plan: RowsPlan, done_before: int) -> Iterator[None]:
    """Show progress while the body runs."""
    import ray

    progress = Progress(plan.label, plan.num_images, unit="images")
    stop = threading.Event()

    def update() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster may be shutting down
            stats: JobStats = ray.get(coordinator.stats.remote(), timeout=30)
            # an image whose process crashed before its block was written ends twice
            done = min(done_before + stats.counts["images"], plan.num_images)
            progress.update(done, in_progress=stats.in_progress, **plan.progress_counts(stats))

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            update()

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        yield
    finally:
        stop.set()
        poller.join()
        update()
        progress.close()
