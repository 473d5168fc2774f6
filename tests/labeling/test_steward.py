"""What the processes of a job agree on, asked in this process."""

import json
from collections import Counter

from ureca.labeling import steward as steward_module
from ureca.labeling.errors import BudgetSpent
from ureca.labeling.steward import Deaths, Steward


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
    assert steward.reserve(60) is True
    assert steward.reserve(60) is None, "the first may leave some"
    steward.settle(60, 30)
    assert steward.reserve(60) is True
    steward.settle(60, 60)
    assert steward.reserve(60) is False
    assert steward.reserve(10) is True
    assert Steward().reserve(10**12) is True


def test_what_earlier_starts_spent_counts(tmp_path):
    path = str(tmp_path / "spent.json")
    first = Steward(path, max_tokens=100)
    first.reserve(80)
    first.settle(80, 70)
    first.write()
    assert json.loads((tmp_path / "spent.json").read_text()) == {"tokens": 70}
    assert Steward(path, max_tokens=100).reserve(40) is False
    assert Steward(path, max_tokens=200).reserve(40) is True


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
