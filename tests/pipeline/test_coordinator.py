"""Coordination between the processes of a job, tested in one process."""

import asyncio
import json
from collections import Counter

import pytest

from ureca.pipeline import coordinator as steward_module
from ureca.pipeline.coordinator import CrashCounts, JobCoordinator, SharedBudget
from ureca.pipeline.errors import BudgetSpent


def test_what_was_begun_and_never_ended_has_died():
    coordinator = JobCoordinator()
    assert coordinator.block_status(["a", "b", "c"]).crashes == {}
    coordinator.begin("a", alone=False)
    coordinator.begin("b", alone=False)
    coordinator.end("b", Counter(images=1))
    assert coordinator.block_status(["a", "b", "c"]).crashes == {"a": CrashCounts(1, 0)}
    assert coordinator.block_status(["a"]).crashes == {"a": CrashCounts(1, 0)}, (
        "counted once for each time it was begun"
    )
    coordinator.begin("a", alone=True)
    assert coordinator.block_status(["a"]).crashes == {"a": CrashCounts(2, 1)}
    stats = coordinator.stats()
    assert (stats.counts["crashes"], stats.counts["images"]) == (2, 1)


def test_an_image_that_ended_is_forgotten():
    coordinator = JobCoordinator()
    coordinator.begin("a", alone=False)
    coordinator.block_status(["a"])
    coordinator.begin("a", alone=False)
    coordinator.end("a", Counter())
    assert coordinator.block_status(["a"]).crashes == {}
    assert coordinator.stats().in_progress == 0


def test_tokens_are_granted_refused_or_waited_for():
    coordinator = JobCoordinator(max_tokens=100)
    assert coordinator.reserve("x", 60) is True
    assert coordinator.reserve("x", 60) is None, "the first may leave some"
    coordinator.commit("x", 60, 30)
    assert coordinator.reserve("x", 60) is True
    coordinator.commit("x", 60, 60)
    assert coordinator.reserve("x", 60) is False
    assert coordinator.reserve("x", 10) is True
    assert JobCoordinator().reserve("x", 10**12) is True


def test_what_earlier_starts_spent_counts(tmp_path):
    path = str(tmp_path / "spent.json")
    first = JobCoordinator(path, max_tokens=100)
    first.reserve("x", 80)
    first.commit("x", 80, 70)
    first.write()
    assert json.loads((tmp_path / "spent.json").read_text()) == {"tokens": 70}
    assert JobCoordinator(path, max_tokens=100).reserve("x", 40) is False
    assert JobCoordinator(path, max_tokens=200).reserve("x", 40) is True


def test_a_stop_is_over_when_nothing_is_under_way(monkeypatch):
    monkeypatch.setattr(steward_module, "_DRAINED_SECONDS", 0.0)
    coordinator = JobCoordinator()
    assert not coordinator.block_status([]).drained
    coordinator.begin("a", alone=False)
    coordinator.stop(BudgetSpent("first"))
    coordinator.stop(BudgetSpent("second"))
    situation = coordinator.block_status(["b"])
    assert (str(situation.stopped), situation.drained) == ("first", False)
    coordinator.end("a", Counter())
    assert coordinator.block_status(["b"]).drained


def test_what_a_dead_process_had_set_aside_is_free_again():
    coordinator = JobCoordinator(max_tokens=100)
    coordinator.ready("x")
    assert coordinator.reserve("x", 60) is True
    assert coordinator.reserve("y", 60) is None
    coordinator.ready("x")
    assert coordinator.reserve("y", 60) is True
    coordinator.commit("x", 60, 10)
    assert coordinator.reserve("x", 30) is True, "a late word of the dead gives back nothing of others"


def test_what_is_granted_to_a_request_that_was_canceled_is_given_back():
    coordinator = JobCoordinator(max_tokens=100)

    class Handle:
        """The actor's handle, as a process sees it: answers come later."""

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

    async def cancel_while_asking():
        budget = SharedBudget(Handle(), "x", 100)
        asking = asyncio.create_task(budget.reserve(80))
        await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.sleep(0.05)
        assert coordinator.reserve("y", 90) is True
        coordinator.commit("y", 90, 50)
        with pytest.raises(BudgetSpent, match="100"):
            await budget.reserve(60)

    asyncio.run(cancel_while_asking())
