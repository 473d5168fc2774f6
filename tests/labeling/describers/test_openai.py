"""Describer chat against a real HTTP endpoint that is slow, refuses, fails, and dies."""

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest
from support.describe_requests import request
from support.slow_endpoint import SlowEndpoint

from ureca.errors import ConfigError, InputError
from ureca.labeling.describers.base import DescribeRequest, Description
from ureca.labeling.describers.openai import ChatDescriber
from ureca.labeling.describers.openai_client import ChatConfig, RateLimiter
from ureca.labeling.describers.prompts import PromptSet
from ureca.pipeline.errors import BudgetSpent, EndpointLost

PROMPTS = PromptSet.load(longest_px=128)  # small views: the endpoint looks at none


@pytest.fixture(scope="module")
def shared() -> Iterator[SlowEndpoint]:
    with SlowEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(shared: SlowEndpoint) -> SlowEndpoint:
    """Fresh: no faults, nothing counted."""
    shared.set(latency_s=0.02, slots=8, queue=True, retry_after_s=0.2, structured=True, api_key="", choice=None)
    shared.set(faults={}, fault_tries=1, poison="", poison_status=500)
    shared.reset()
    return shared


class Tokens:
    """A budget as the job has it, in one process."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.spent = 0

    async def reserve(self, tokens: int) -> None:
        if tokens > self.left:
            raise BudgetSpent("all tokens are spent")
        self.left -= tokens

    def commit(self, reserved: int, spent: int) -> None:
        self.left += reserved - spent
        self.spent += spent


def describer(endpoint: SlowEndpoint, *, api_key: str = "", share: float = 1.0, budget=None, **config) -> ChatDescriber:
    settings = {"base_url": endpoint.url, "model": endpoint.model, **config}
    return ChatDescriber(ChatConfig(**settings), PROMPTS, api_key=api_key, share=share, budget=budget)


def questions(count: int) -> list[DescribeRequest]:
    """Different ones, about as many pictures."""
    draw = np.random.default_rng(0)
    return [
        request("short", parent_caption=f"box number {number} of {draw.integers(10**6)}") for number in range(count)
    ]


def ask(asked: ChatDescriber, requests: list[DescribeRequest]) -> list[Description | BaseException]:
    """All at once; what is raised comes as a value."""

    async def run() -> list[Description | BaseException]:
        try:
            return await asyncio.gather(*(asked.describe(each) for each in requests), return_exceptions=True)
        finally:
            await asked.close()

    return asyncio.run(run())


def test_every_pass_is_asked_and_read(endpoint):
    endpoint.set(choice=3)
    passes = ("short", "long", "unique", "choose", "judge")
    short, long, unique, choose, judge = ask(describer(endpoint), [request(name) for name in passes])
    assert short.problem is None
    assert short.text.split()[0] == "a"
    assert (short.prompt_tokens, short.completion_tokens) == (1000, 20)
    assert 0.02 <= short.seconds < 5
    assert long.text != short.text
    assert list(unique.told_apart) == [2], "number 1 of the view"
    assert choose.choice == 4, "the third candidate"
    assert judge.verdict is True
    assert ask(describer(endpoint), [request("short")])[0].text == short.text, "the same question, the same answer"


def test_no_more_requests_are_under_way_than_allowed_and_no_fewer(endpoint):
    endpoint.set(slots=64, latency_s=0.3)
    ask(describer(endpoint, concurrency=12), questions(36))
    assert endpoint.stats()["max_in_service"] == 12
    endpoint.reset()
    ask(describer(endpoint, concurrency=12, share=0.25), questions(9))
    assert endpoint.stats()["max_in_service"] == 3, "a process of four has a quarter"


@pytest.mark.parametrize("fault", ["429", "500", "drop", "garbage"])
def test_what_passes_is_tried_again_until_it_has(endpoint, fault):
    endpoint.set(faults={fault: 1.0}, fault_tries=2, retry_after_s=0.1)
    answers = ask(describer(endpoint), questions(4))
    assert all(isinstance(answer, Description) and answer.problem is None for answer in answers), answers
    stats = endpoint.stats()
    assert stats["by_outcome"]["200"] >= 4, "and a word to see whether it lives"
    assert stats["by_outcome"][fault] >= 8
    assert stats["repeated_answers"] == 0


def test_a_request_that_hangs_is_given_up_and_asked_again(endpoint):
    endpoint.set(faults={"hang": 1.0}, slots=32)
    started = time.monotonic()
    [answer] = ask(describer(endpoint, timeout_s=0.5), questions(1))
    assert answer.problem is None
    assert time.monotonic() - started < 10
    assert endpoint.stats()["requests"] == 2


def test_retry_after_is_obeyed_by_all(endpoint):
    endpoint.set(queue=False, slots=1, retry_after_s=0.6, latency_s=0.05)
    answers = ask(describer(endpoint, concurrency=2), questions(2))
    assert all(isinstance(answer, Description) for answer in answers)
    timeline = endpoint.stats()["timeline"]
    starts = [moment for moment, busy in timeline if busy == 1]
    assert len(starts) == 2
    assert starts[1] - starts[0] >= 0.6


def test_one_request_that_always_fails_concerns_one_image(endpoint):
    endpoint.set(poison="box number 7 of", latency_s=0.2, slots=1)
    answers = ask(describer(endpoint, retries=1, concurrency=4), questions(24))
    [failed] = [answer for answer in answers if isinstance(answer, BaseException)]
    assert failed is answers[7]
    assert isinstance(failed, InputError)
    assert "failed 2 times on this request while answering others (asked to fail)" in str(failed)


def test_a_request_that_always_fails_is_found_out_when_there_are_no_others(endpoint):
    """Else a job would end with it, in vain, at each start."""
    endpoint.set(poison="box number 0 of")
    [failed] = ask(describer(endpoint, retries=1, give_up_after_s=60), questions(1))
    assert isinstance(failed, InputError), failed


def test_an_endpoint_that_dies_is_waited_for(endpoint):
    async def run() -> list[Description]:
        asked = describer(endpoint, give_up_after_s=60)
        in_progress = asyncio.gather(*(asked.describe(each) for each in questions(12)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(endpoint.kill)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(endpoint.start)
        answers = await in_progress
        await asked.close()
        return answers

    endpoint.set(latency_s=0.2, slots=2)
    answers = asyncio.run(run())
    assert all(answer.problem is None for answer in answers)


def test_an_endpoint_that_stays_away_stops_the_job():
    with SlowEndpoint() as gone:
        asked = describer(gone, give_up_after_s=1.0)
    started = time.monotonic()
    for lost in ask(asked, questions(3)):
        assert isinstance(lost, EndpointLost)
        assert f"{gone.url}: no answer for " in str(lost)
        assert "restore it and run the same command to resume" in str(lost)
    assert 1.0 < time.monotonic() - started < 15


def test_tokens_are_reserved_settled_and_end(endpoint):
    budget = Tokens(20_000)
    answers = ask(describer(endpoint, budget=budget, concurrency=2), questions(40))
    labeled = [answer for answer in answers if isinstance(answer, Description)]
    spent = [answer for answer in answers if isinstance(answer, BudgetSpent)]
    assert len(labeled) + len(spent) == 40
    assert len(spent) > 0
    stats = endpoint.stats()
    assert budget.spent == stats["prompt_tokens"] + stats["completion_tokens"] == 1020 * len(labeled)
    assert budget.spent + budget.left == 20_000, "nothing stays reserved"
    assert 20_000 - 2 * 2_000 < budget.spent <= 20_000, "spent but for what the last requests might have taken"


def test_rates_are_kept(endpoint):
    started = time.monotonic()
    ask(describer(endpoint, requests_per_minute=600), questions(11))
    assert time.monotonic() - started >= 1.0, "ten intervals of a tenth of a second"
    started = time.monotonic()
    ask(describer(endpoint, tokens_per_minute=480_000, share=0.5), questions(4))
    assert time.monotonic() - started >= 0.7, (
        "four thousand tokens a second, a thousand and some each, the first at once"
    )


def test_the_pace_allows_for_what_was_really_taken():
    async def run(correction: int) -> float:
        pace = RateLimiter(6000)
        started = time.monotonic()
        await pace.wait(50)
        pace.correct(correction)
        await pace.wait(1)
        return time.monotonic() - started

    assert asyncio.run(run(0)) >= 0.5
    assert asyncio.run(run(-50)) < 0.4
    assert asyncio.run(run(+30)) >= 0.8


def test_an_endpoint_without_schemas_is_asked_in_plain_words(endpoint):
    endpoint.set(structured=False, choice=1)
    asked = describer(endpoint)

    async def run() -> list[Description]:
        first = await asyncio.gather(
            *(asked.describe(request(name)) for name in ("short", "unique", "choose", "judge"))
        )
        return [*first, await asked.describe(request("long"))]

    answers = asyncio.run(run())
    assert [answer.problem for answer in answers] == [None] * 5
    assert answers[2].choice == 2
    assert answers[3].verdict is True
    outcomes = endpoint.stats()["by_outcome"]
    assert outcomes["200"] == 5
    assert 1 <= outcomes["400"] <= 4, "those already in progress when it was found out, and none later"


def test_unusable_answers_come_with_their_problem(endpoint):
    kinds = {"refusal": "refusal", "empty": "empty", "language": "language", "malformed": "malformed"}
    for fault, kind in kinds.items():
        endpoint.set(faults={fault: 1.0}, fault_tries=0)
        [answer] = ask(describer(endpoint), questions(1))
        assert answer.problem is not None
        assert answer.problem.kind == ("malformed" if fault == "language" else kind), "no JSON, whatever its language"
        assert answer.completion_tokens == 20, "they are paid for all the same"


def test_what_can_not_work_is_found_out_before_the_job_starts(endpoint):
    def refused(error: type[Exception], **settings) -> str:
        asked = describer(endpoint, **settings)

        async def check() -> None:
            try:
                await asked.check()
            finally:
                await asked.close()

        with pytest.raises(error) as caught:
            asyncio.run(check())
        return str(caught.value)

    with SlowEndpoint() as gone:
        address = gone.url
    down = refused(ConfigError, base_url=address)
    assert down.startswith(f"{address}: no answer (")
    assert down.endswith("; start the endpoint or correct chat.base_url")
    assert refused(ConfigError, model="gpt") == f"{endpoint.url}: has no model 'gpt'; it has {endpoint.model}"
    assert "or chat.base_url, which usually ends in /v1" in refused(ConfigError, base_url=endpoint.address)
    endpoint.set(api_key="secret")
    no_key = refused(ConfigError, api_key_env="MY_KEY")
    assert "refuses the key in environment variable MY_KEY (wrong API key)" in no_key
    asyncio.run(describer(endpoint, api_key="secret").check())
    with pytest.raises(ConfigError, match="chat.model"):
        describer(endpoint, model="")


def test_a_key_that_is_refused_midway_stops_the_job_at_once(endpoint, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    assert ChatConfig(api_key_env="MY_KEY").api_key() == "secret"
    endpoint.set(api_key="another")
    started = time.monotonic()
    [lost] = ask(describer(endpoint, api_key="secret"), questions(1))
    assert isinstance(lost, EndpointLost)
    assert "refuses the key" in str(lost)
    assert time.monotonic() - started < 5


def test_a_quota_that_is_spent_stops_the_job_and_a_request_objected_to_does_not(endpoint):
    endpoint.set(faults={"402": 1.0}, fault_tries=0)
    [lost] = ask(describer(endpoint), questions(1))
    assert isinstance(lost, EndpointLost)
    assert "the quota of this key is spent (asked to fail); raise it at the provider" in str(lost)
    endpoint.set(faults={}, poison="box number 7 of", poison_status=403, latency_s=0.2, slots=1)
    answers = ask(describer(endpoint, retries=1, concurrency=4), questions(16))
    assert isinstance(answers[7], InputError)
    assert sum(isinstance(answer, Description) for answer in answers) == 15


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"tokens_per_minute": -1}, {"timeout_s": 0.0}, {"give_up_after_s": -1.0}]
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"chat.{next(iter(wrong))}="):
        ChatConfig(**wrong)


def test_only_so_many_views_are_held_in_memory(endpoint, monkeypatch):
    """A walk asks hundreds at a time; each has pictures of some megabytes."""
    made, answered, most = 0, 0, 0
    write = PROMPTS.prompt

    def counting(asked: DescribeRequest):
        nonlocal made, most
        made += 1
        most = max(most, made - answered)
        return write(asked)

    monkeypatch.setattr(PROMPTS, "prompt", counting)
    asked = describer(endpoint, concurrency=3)

    async def one(each: DescribeRequest) -> None:
        nonlocal answered
        await asked.describe(each)
        answered += 1

    async def run() -> None:
        await asyncio.gather(*(one(each) for each in questions(40)))
        await asked.close()

    asyncio.run(run())
    assert made == 40
    assert 3 < most <= 7, "twice the places, and one whose answer has just come"
