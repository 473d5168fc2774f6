"""What the processes of a job agree on, asked in this process."""

import asyncio
import json
from collections import Counter

import pytest

from ureca.pipeline import coordinator as steward_module
from ureca.pipeline.coordinator import Deaths, SharedBudget, Steward
from ureca.pipeline.errors import BudgetSpent


def test_what_was_begun_and_never_ended_has_died():
    steward = Steward()
    assert steward.look(["a", "b", "c"]).deaths == {}
    steward.begin("a", alone=False)
    steward.begin("b", alone=False)
    steward.end("b", Counter(images=1))
    assert steward.look(["a", "b", "c"]).deaths == {"a": Deaths(1, 0)}
    assert steward.look(["a"]).deaths == {"a": Deaths(1, 0)}, "counted once for each time it was begun"
    steward.begin("a", alone=True)
    assert steward.look(["a"]).deaths == {"a": Deaths(2, 1)}
    account = steward.account()
    assert (account.counts["deaths"], account.counts["images"]) == (2, 1)


def test_an_image_that_ended_is_forgotten():
    steward = Steward()
    steward.begin("a", alone=False)
    steward.look(["a"])
    steward.begin("a", alone=False)
    steward.end("a", Counter())
    assert steward.look(["a"]).deaths == {}
    assert steward.account().under_way == 0


def test_tokens_are_granted_refused_or_waited_for():
    steward = Steward(max_tokens=100)
    assert steward.reserve("x", 60) is True
    assert steward.reserve("x", 60) is None, "the first may leave some"
    steward.settle("x", 60, 30)
    assert steward.reserve("x", 60) is True
    steward.settle("x", 60, 60)
    assert steward.reserve("x", 60) is False
    assert steward.reserve("x", 10) is True
    assert Steward().reserve("x", 10**12) is True


def test_what_earlier_starts_spent_counts(tmp_path):
    path = str(tmp_path / "spent.json")
    first = Steward(path, max_tokens=100)
    first.reserve("x", 80)
    first.settle("x", 80, 70)
    first.write()
    assert json.loads((tmp_path / "spent.json").read_text()) == {"tokens": 70}
    assert Steward(path, max_tokens=100).reserve("x", 40) is False
    assert Steward(path, max_tokens=200).reserve("x", 40) is True


def test_a_stop_is_over_when_nothing_is_under_way(monkeypatch):
    monkeypatch.setattr(steward_module, "_DRAINED_SECONDS", 0.0)
    steward = Steward()
    assert not steward.look([]).drained
    steward.begin("a", alone=False)
    steward.stop(BudgetSpent("first"))
    steward.stop(BudgetSpent("second"))
    situation = steward.look(["b"])
    assert (str(situation.stopped), situation.drained) == ("first", False)
    steward.end("a", Counter())
    assert steward.look(["b"]).drained


def test_what_a_dead_process_had_set_aside_is_free_again():
    steward = Steward(max_tokens=100)
    steward.ready("x")
    assert steward.reserve("x", 60) is True
    assert steward.reserve("y", 60) is None
    steward.ready("x")
    assert steward.reserve("y", 60) is True
    steward.settle("x", 60, 10)
    assert steward.reserve("x", 30) is True, "a late word of the dead gives back nothing of others"


def test_what_is_granted_to_a_request_that_was_canceled_is_given_back():
    steward = Steward(max_tokens=100)

    class Handle:
        """The actor's handle, as a process sees it: answers come later."""

        def __getattr__(self, name):
            return Call(getattr(steward, name))

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
        assert steward.reserve("y", 90) is True
        steward.settle("y", 90, 50)
        with pytest.raises(BudgetSpent, match="the 100 tokens that the job may spend are spent"):
            await budget.reserve(60)

    asyncio.run(cancel_while_asking())
