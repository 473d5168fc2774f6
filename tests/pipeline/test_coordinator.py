"""Coordination between the processes of a job, tested in one process."""

import asyncio
import json
from collections import Counter

import pytest

from ureca.pipeline import coordinator as coordinator_module
from ureca.pipeline.coordinator import CrashCounts, JobCoordinator, SharedBudget
from ureca.pipeline.errors import BudgetSpent


def test_block_status_unended_images_count_as_crashed():
    coordinator = JobCoordinator()
    assert coordinator.block_status(["a", "b", "c"]).crashes == {}
    coordinator.begin("a", alone=False)
    coordinator.begin("b", alone=False)
    coordinator.end("b", Counter(images=1))
    assert coordinator.block_status(["a", "b", "c"]).crashes == {"a": CrashCounts(1, 0)}
    assert coordinator.block_status(["a"]).crashes == {"a": CrashCounts(1, 0)}, "one crash per begin"
    coordinator.begin("a", alone=True)
    assert coordinator.block_status(["a"]).crashes == {"a": CrashCounts(2, 1)}
    stats = coordinator.stats()
    assert (stats.counts["crashes"], stats.counts["images"]) == (2, 1)


def test_end_forgets_crashes_of_the_image():
    coordinator = JobCoordinator()
    coordinator.begin("a", alone=False)
    coordinator.block_status(["a"])
    coordinator.begin("a", alone=False)
    coordinator.end("a", Counter())
    assert coordinator.block_status(["a"]).crashes == {}
    assert coordinator.stats().in_progress == 0


def test_reserve_grants_refuses_or_asks_to_retry():
    coordinator = JobCoordinator(max_tokens=100)
    assert coordinator.reserve("x", 60) is True
    assert coordinator.reserve("x", 60) is None, "the first request may release some"
    coordinator.commit("x", 60, 30)
    assert coordinator.reserve("x", 60) is True
    coordinator.commit("x", 60, 60)
    assert coordinator.reserve("x", 60) is False
    assert coordinator.reserve("x", 10) is True
    assert JobCoordinator().reserve("x", 10**12) is True


def test_reserve_counts_tokens_of_earlier_starts(tmp_path):
    path = str(tmp_path / "spent.json")
    first = JobCoordinator(path, max_tokens=100)
    first.reserve("x", 80)
    first.commit("x", 80, 70)
    first.write()
    assert json.loads((tmp_path / "spent.json").read_text()) == {"tokens": 70}
    assert JobCoordinator(path, max_tokens=100).reserve("x", 40) is False
    assert JobCoordinator(path, max_tokens=200).reserve("x", 40) is True


def test_stop_is_drained_once_no_image_is_in_progress(monkeypatch):
    monkeypatch.setattr(coordinator_module, "_DRAINED_SECONDS", 0.0)
    coordinator = JobCoordinator()
    assert not coordinator.block_status([]).drained
    coordinator.begin("a", alone=False)
    coordinator.stop(BudgetSpent("first"))
    coordinator.stop(BudgetSpent("second"))
    status = coordinator.block_status(["b"])
    assert (str(status.stopped), status.drained) == ("first", False)
    coordinator.end("a", Counter())
    assert coordinator.block_status(["b"]).drained


def test_register_again_releases_reservations_of_dead_process():
    coordinator = JobCoordinator(max_tokens=100)
    coordinator.register("x")
    assert coordinator.reserve("x", 60) is True
    assert coordinator.reserve("y", 60) is None
    coordinator.register("x")
    assert coordinator.reserve("y", 60) is True
    coordinator.commit("x", 60, 10)
    assert coordinator.reserve("x", 30) is True, "a late commit of the dead process releases nothing of others"


def test_reserve_canceled_request_releases_its_grant():
    coordinator = JobCoordinator(max_tokens=100)

    class Handle:
        """Actor handle whose answers arrive later."""

        def __getattr__(self, name):
            return Call(getattr(coordinator, name))

    class Call:
        def __init__(self, method):
            self._method = method

        def remote(self, *arguments):
            answer = self._method(*arguments)

            async def later():
                await asyncio.sleep(0.01)
                return answer

            return asyncio.ensure_future(later())

    async def cancel_while_reserving():
        budget = SharedBudget(Handle(), "x", 100)
        pending = asyncio.create_task(budget.reserve(80))
        await asyncio.sleep(0.001)
        pending.cancel()
        await asyncio.sleep(0.05)
        assert coordinator.reserve("y", 90) is True
        coordinator.commit("y", 90, 50)
        with pytest.raises(BudgetSpent, match="100"):
            await budget.reserve(60)

    asyncio.run(cancel_while_reserving())
