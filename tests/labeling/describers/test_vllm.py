"""The engine inside the actor: a real vLLM on the nano base, started once; and where Ray places such actors."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

import psutil
import pytest
from support.describe_requests import request
from support.engine_processes import engine_processes
from support.paths import SUPPORT

from ureca.engine.config import gpus_per_actor
from ureca.errors import ConfigError, InputError
from ureca.labeling.describers.prompts import PromptSet
from ureca.labeling.describers.vllm import VllmConfig, VllmDescriber
from ureca.pipeline.errors import EndpointLost

PASSES = ("short", "long", "unique", "choose", "judge")


class Running:
    """A describer, the loop it lives in, and how often it said that its engine had died."""

    def __init__(self) -> None:
        self.crashes = 0
        config = VllmConfig(model="nano", max_num_seqs=8, max_model_len=3072)
        self.describer = VllmDescriber(config, PromptSet.load(), on_engine_death=self._count)
        self._loop = asyncio.new_event_loop()
        self._others = set(engine_processes())

    def engine(self) -> psutil.Process:
        """vLLM's process; other tests may have one of theirs running."""
        [engine] = set(engine_processes()) - self._others
        return engine

    def _count(self) -> None:
        self.crashes += 1

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self.describer.close())
        self._loop.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


@pytest.mark.slow
def test_every_pass_goes_through_the_engine_at_once(running):
    async def ask_all() -> list:
        return await asyncio.gather(*(running.describer.describe(request(name)) for name in PASSES * 2))

    answers = running.run(ask_all())
    for name, answer in zip(PASSES * 2, answers, strict=True):
        assert answer.prompt_tokens > 256, "a picture alone is 256 tokens"
        assert answer.completion_tokens > 0
        assert answer.seconds > 0
        if name == "choose":
            assert answer.problem or answer.choice in (None, 2, 1, 4)
        if name == "judge":
            assert answer.problem or answer.verdict is not None
    by_pass = dict(zip(PASSES, answers, strict=False))
    assert by_pass["judge"].prompt_tokens > by_pass["choose"].prompt_tokens + 256, "three pictures, not one"


@pytest.mark.slow
def test_answers_are_held_to_the_schema(running):
    judged = running.run(running.describer.describe(request("judge")))
    assert judged.problem is None, "nano knows no JSON; only the schema can have made this"
    assert judged.verdict in (True, False)


@pytest.mark.slow
def test_what_does_not_fit_concerns_one_image_only(running):
    with pytest.raises(InputError, match="request"):
        running.run(running.describer.describe(request("judge", own_caption="very long " * 4000)))
    assert running.run(running.describer.describe(request("judge"))).problem is None


@pytest.mark.slow
def test_the_worker_is_told_when_its_engine_dies(running):
    """Last: the engine is gone after it."""
    running.run(running.describer.describe(request("judge")))
    before = running.crashes
    running.engine().kill()
    with pytest.raises(EndpointLost, match="vLLM's"):
        running.run(running.describer.describe(request("long")))
    assert running.crashes == before + 1


@pytest.mark.slow
def test_a_tensor_parallel_group_is_one_actor_and_no_more_start_than_fit(tmp_path):
    """Four logical GPUs, two for each model: two actors, each with GPUs, at work side by side."""
    job = SUPPORT / "gpu_placement.py"
    done = subprocess.run(
        [sys.executable, job, tmp_path, "2"], capture_output=True, text=True, timeout=240, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    images = json.loads((tmp_path / "placement.json").read_text())
    assert len(images) == 12
    gpus_of = {image["process"]: tuple(image["gpus"]) for image in images}
    assert len(gpus_of) == 2
    assert sorted(gpu for gpus in gpus_of.values() for gpu in gpus) == [0, 1, 2, 3], "two each, none twice"
    assert all(image["visible"] == ",".join(map(str, image["gpus"])) for image in images), "vLLM sees these alone"
    one, other = ([image for image in images if image["process"] == process] for process in gpus_of)
    assert min(image["since"] for image in one) < max(image["until"] for image in other)
    assert min(image["since"] for image in other) < max(image["until"] for image in one)


def test_actors_take_as_many_gpus_as_share_their_model():
    assert gpus_per_actor(VllmConfig(), 8) == 1
    assert gpus_per_actor(VllmConfig(tensor_parallel_size=4), 8) == 4
    assert gpus_per_actor(VllmConfig(gpus_per_actor=0.5), 1) == 0.5
    assert gpus_per_actor(VllmConfig(tensor_parallel_size=4), 0) == 0, "without GPUs engines run on CPUs"
    with pytest.raises(ConfigError, match="4 GPUs.*2"):
        gpus_per_actor(VllmConfig(tensor_parallel_size=4), 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tensor_parallel_size": 0}, "vllm.tensor_parallel_size=0:.*1"),
        ({"tensor_parallel_size": 2, "gpus_per_actor": 1}, "GPUs"),
        ({"gpu_memory_utilization": 1.5}, "share"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        VllmConfig(**wrong)


def test_a_folder_without_a_model_is_refused_before_the_job_starts(tmp_path):
    describer = VllmDescriber(VllmConfig(model=str(tmp_path)), PromptSet.load())
    with pytest.raises(ConfigError, match=r"config.json\)"):
        asyncio.run(describer.check())
    asyncio.run(VllmDescriber(VllmConfig(model="nano"), PromptSet.load()).check())
    asyncio.run(VllmDescriber(VllmConfig(), PromptSet.load()).check())
