"""Shared state of a corpus job's processes, in one Ray actor next to the driver.

    journal   images in progress. An image that starts again without having ended was in a process that died, and may
              be the cause. It is retried with fewer and fewer other images, at last alone; if its process then dies
              again, the image is quarantined. (Ray alone would retry its block forever.)
    budget    tokens spent, in this start and earlier ones, and tokens reserved for requests in progress
    stop      the reason why no further image can be processed for now
    stats     totals of the images that ended

Memory does not grow with the corpus: an image that ended is forgotten.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ureca.pipeline.errors import BudgetSpent, JobStopped
from ureca.storage import files as io

_WRITE_EVERY_SECONDS = 5.0
_DRAINED_SECONDS = 3.0
"""Seconds without any image in progress, after a stop, before the job ends: finished rows are written by then."""


@dataclass
class CrashCounts:
    """Crashes of the process of an image while it held that image."""

    all: int = 0
    alone: int = 0
    """Crashes while it held no other image."""


@dataclass(frozen=True)
class BlockStatus:
    """State that a worker needs before it starts a block."""

    crashes: dict[str, CrashCounts]
    """Crash counts of the block's images that have any."""
    stopped: JobStopped | None
    drained: bool
    """Stopped, and no image has been in progress for a while."""


@dataclass
class JobStats:
    """Totals of this start of the job."""

    counts: Counter[str] = field(default_factory=Counter)
    in_progress: int = 0
    actors: dict[str, float] = field(default_factory=dict)
    """Actor id -> time of its first readiness, in seconds since the epoch."""
    stopped: JobStopped | None = None
    interrupted: bool = False
    """The user pressed Ctrl-C."""
    spent_tokens: int = 0
    """Tokens spent against the budget, earlier starts included."""

    @property
    def is_complete(self) -> bool:
        """True if nothing is left to do."""
        return self.stopped is None and not self.interrupted

    def raise_unless_complete(self) -> None:
        """Raise if work is left to a later start.

        Raises:
            JobStopped: no further image could be processed.
            KeyboardInterrupt: Ctrl-C.
        """
        if self.stopped is not None:
            raise self.stopped
        if self.interrupted:
            raise KeyboardInterrupt


class JobCoordinator:
    """Coordinates the processes of one job, which call its methods one at a time.

    `spent_path` stores the tokens spent between starts; `max_tokens` 0 means no limit.
    """

    def __init__(self, spent_path: str = "", max_tokens: int = 0) -> None:
        self._spent_path, self._max_tokens = spent_path, max_tokens
        self._stats = JobStats()
        if spent_path and io.exists(spent_path):
            self._stats.spent_tokens = int(io.read_json(spent_path)["tokens"])
        self._stored = self._stats.spent_tokens
        self._stored_at = time.monotonic()
        self._reserved: Counter[str] = Counter()
        self._in_progress: dict[str, bool] = {}  # image id -> no other image is in its process
        self._crashes: dict[str, CrashCounts] = {}
        self._idle_since = time.monotonic()

    def register(self, actor_id: str) -> None:
        """Register a process. A restarted process has the same id, and reservations of its predecessor are released."""
        self._stats.actors.setdefault(actor_id, time.time())
        self._reserved.pop(actor_id, None)

    def block_status(self, image_ids: list[str]) -> BlockStatus:
        """Return what a worker must know about a block; images of it that were in progress count as crashed."""
        for image_id in image_ids:
            was_alone = self._in_progress.pop(image_id, None)
            if was_alone is not None:
                crashes = self._crashes.setdefault(image_id, CrashCounts())
                crashes.all += 1
                crashes.alone += was_alone
                self._stats.counts["crashes"] += 1
        stopped = self._stats.stopped
        idle = not self._in_progress and time.monotonic() - self._idle_since > _DRAINED_SECONDS
        crashes_of = {image_id: self._crashes[image_id] for image_id in image_ids if image_id in self._crashes}
        return BlockStatus(crashes_of, stopped, drained=stopped is not None and idle)

    def begin(self, image_id: str, alone: bool) -> None:
        """Mark an image as in progress: from now on a crash of its process counts against it."""
        self._in_progress[image_id] = alone

    def end(self, image_id: str, counts: Counter[str]) -> None:
        """Mark an image as ended (labeled, quarantined or left for a later start) and add `counts` to the totals."""
        self._in_progress.pop(image_id, None)
        self._crashes.pop(image_id, None)
        self._stats.counts += counts
        self._idle_since = time.monotonic()

    def stop(self, reason: JobStopped) -> None:
        """Stop the job: no further image can be processed for now. The first reason is kept."""
        self._stats.stopped = self._stats.stopped or reason

    def reserve(self, actor_id: str, tokens: int) -> bool | None:
        """Reserve tokens. None: retry later, reservations may be released. False: the budget is spent."""
        reserved = self._reserved.total()
        if not self._max_tokens or tokens <= self._max_tokens - self._stats.spent_tokens - reserved:
            self._reserved[actor_id] += tokens
            return True
        return None if reserved else False

    def commit(self, actor_id: str, reserved: int, spent: int) -> None:
        """Release a reservation and count the tokens spent."""
        self._reserved[actor_id] = max(0, self._reserved[actor_id] - reserved)
        self._stats.spent_tokens += spent
        if time.monotonic() - self._stored_at > _WRITE_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Store the tokens spent for the next start."""
        if self._spent_path and self._stored != self._stats.spent_tokens:
            io.write_json(self._spent_path, {"tokens": self._stats.spent_tokens})
            self._stored, self._stored_at = self._stats.spent_tokens, time.monotonic()

    def stats(self) -> JobStats:
        """Return the totals so far."""
        self._stats.in_progress = len(self._in_progress)
        return self._stats


class SharedBudget:
    """The job's token budget as one process sees it: implements `Budget`."""

    def __init__(self, coordinator: Any, actor_id: str, max_tokens: int) -> None:
        """Take the coordinator's actor handle and the id of the requesting actor."""
        self._coordinator, self._actor_id, self._max_tokens = coordinator, actor_id, max_tokens

    async def reserve(self, tokens: int) -> None:
        """Reserve the maximum that the next request may take; wait while reservations of other requests may be
        released.

        Raises:
            BudgetSpent: fewer tokens are left.
        """
        while not (granted := await self._request(tokens)):
            if granted is False:
                raise BudgetSpent(
                    f"the job's budget of {self._max_tokens:,} tokens is spent. Finished images are kept; the same "
                    "command with a higher limit resumes the job."
                )
            await asyncio.sleep(0.2)

    def commit(self, reserved: int, spent: int) -> None:
        """Release a reservation and count the tokens that the request took."""
        self._coordinator.commit.remote(self._actor_id, reserved, spent)

    async def _request(self, tokens: int) -> bool | None:
        async def request() -> bool | None:
            granted: bool | None = await self._coordinator.reserve.remote(self._actor_id, tokens)
            return granted

        pending = asyncio.create_task(request())
        try:
            return await asyncio.shield(pending)
        except asyncio.CancelledError:  # a reservation granted to a canceled request would never be released
            pending.add_done_callback(
                lambda task: self.commit(tokens, 0) if not task.cancelled() and task.result() else None
            )
            raise
