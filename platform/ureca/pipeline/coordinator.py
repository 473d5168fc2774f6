"""What all processes of a labeling job must agree on, kept in one place: a Ray actor beside the driver.

    journal   which images are being labeled. One that is begun again though it never ended was in a process that
              died, and may be why. It is tried in ever smaller company, in the end alone; if its process dies then
              too, it is set aside. (Ray itself would retry its block for ever.)
    budget    tokens spent, in this start and earlier ones, and those set aside for requests under way
    stop      that no further image can be labeled for now, and why
    account   what the images that ended took

Nothing here grows with the corpus: an image that ended is forgotten.
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
"""After a stop, how long nothing must be under way before the job ends: what was finished is written by then."""


@dataclass
class CrashCounts:
    """How often the process of an image ended while the image was in it."""

    all: int = 0
    alone: int = 0
    """With no other image in it."""


@dataclass(frozen=True)
class BlockStatus:
    """What a process needs to know before it takes up a block."""

    deaths: dict[str, CrashCounts]
    """Of the block's images; those without any are left out."""
    stopped: JobStopped | None
    drained: bool
    """Stopped, and nothing has been under way for a while."""


@dataclass
class JobStats:
    """What this start of the job has done so far."""

    counts: Counter[str] = field(default_factory=Counter)
    in_progress: int = 0
    actors: dict[str, float] = field(default_factory=dict)
    """Actor -> when it was first ready, in seconds since the epoch."""
    stopped: JobStopped | None = None
    interrupted: bool = False
    """By Ctrl-C."""
    spent_tokens: int = 0
    """Against the spending limit, earlier starts included."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.stopped is None and not self.interrupted

    def raise_unless_complete(self) -> None:
        """End the job where something is left to a later start.

        Raises:
            JobStopped: no further image could be worked on.
            KeyboardInterrupt: Ctrl-C.
        """
        if self.stopped is not None:
            raise self.stopped
        if self.interrupted:
            raise KeyboardInterrupt


class JobCoordinator:
    """One per job. Its methods are called from all processes, one at a time.

    `spent_path`: where the tokens spent are kept between starts; `max_tokens`: 0 = no limit.
    """

    def __init__(self, spent_path: str = "", max_tokens: int = 0) -> None:
        self._spent_path, self._max_tokens = spent_path, max_tokens
        self._account = JobStats()
        if spent_path and io.exists(spent_path):
            self._account.spent_tokens = int(io.read_json(spent_path)["tokens"])
        self._written = self._account.spent_tokens
        self._written_at = time.monotonic()
        self._reserved: Counter[str] = Counter()
        self._begun: dict[str, bool] = {}
        self._deaths: dict[str, CrashCounts] = {}
        self._idle_since = time.monotonic()

    def ready(self, actor_id: str) -> None:
        """A process is there. After its death its successor has the same id; what it had set aside is free again."""
        self._account.actors.setdefault(actor_id, time.time())
        self._reserved.pop(actor_id, None)

    def look(self, image_ids: list[str]) -> BlockStatus:
        """What a process that takes up these images needs to know; whatever of them was begun has died."""
        for image_id in image_ids:
            alone = self._begun.pop(image_id, None)
            if alone is not None:
                deaths = self._deaths.setdefault(image_id, CrashCounts())
                deaths.all += 1
                deaths.alone += alone
                self._account.counts["deaths"] += 1
        stopped = self._account.stopped
        idle = not self._begun and time.monotonic() - self._idle_since > _DRAINED_SECONDS
        known = {image_id: self._deaths[image_id] for image_id in image_ids if image_id in self._deaths}
        return BlockStatus(known, stopped, drained=stopped is not None and idle)

    def begin(self, image_id: str, alone: bool) -> None:
        """From now on the image is to blame if its process dies."""
        self._begun[image_id] = alone

    def end(self, image_id: str, counts: Counter[str]) -> None:
        """The image is labeled, set aside, or left for a later start; `counts` go into the account."""
        self._begun.pop(image_id, None)
        self._deaths.pop(image_id, None)
        self._account.counts += counts
        self._idle_since = time.monotonic()

    def stop(self, reason: JobStopped) -> None:
        """No further image can be labeled for now. The first reason stands."""
        self._account.stopped = self._account.stopped or reason

    def reserve(self, actor_id: str, tokens: int) -> bool | None:
        """Set tokens aside; None: ask again, for others may give some back; False: not as many are left."""
        reserved = self._reserved.total()
        if not self._max_tokens or tokens <= self._max_tokens - self._account.spent_tokens - reserved:
            self._reserved[actor_id] += tokens
            return True
        return None if reserved else False

    def commit(self, actor_id: str, reserved: int, spent: int) -> None:
        """Give back what was set aside, and count what was spent."""
        self._reserved[actor_id] = max(0, self._reserved[actor_id] - reserved)
        self._account.spent_tokens += spent
        if time.monotonic() - self._written_at > _WRITE_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Keep what has been spent for the next start."""
        if self._spent_path and self._written != self._account.spent_tokens:
            io.write_json(self._spent_path, {"tokens": self._account.spent_tokens})
            self._written, self._written_at = self._account.spent_tokens, time.monotonic()

    def stats(self) -> JobStats:
        """How things stand."""
        self._account.in_progress = len(self._begun)
        return self._account


class SharedBudget:
    """The job's tokens as one of its processes sees them: a `Budget` for its describer."""

    def __init__(self, coordinator: Any, actor_id: str, max_tokens: int) -> None:
        """`coordinator`: handle of the Ray actor; `actor_id`: who asks."""
        self._steward, self._actor_id, self._max_tokens = coordinator, actor_id, max_tokens

    async def reserve(self, tokens: int) -> None:
        """Set aside what the next request may take at most; waits while requests under way may leave some of theirs.

        Raises:
            BudgetSpent: not as many are left.
        """
        while not (granted := await self._ask(tokens)):
            if granted is False:
                raise BudgetSpent(
                    f"the {self._max_tokens:,} tokens that the job may spend are spent. What is labeled is kept; "
                    "the same command with a higher limit goes on from there."
                )
            await asyncio.sleep(0.2)

    def commit(self, reserved: int, spent: int) -> None:
        """Give back what was set aside, and count what the request took."""
        self._steward.commit.remote(self._actor_id, reserved, spent)

    async def _ask(self, tokens: int) -> bool | None:
        async def ask() -> bool | None:
            granted: bool | None = await self._steward.reserve.remote(self._actor_id, tokens)
            return granted

        asked = asyncio.create_task(ask())
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:  # what is granted to nobody would be missing for ever
            asked.add_done_callback(
                lambda task: self.commit(tokens, 0) if not task.cancelled() and task.result() else None
            )
            raise
