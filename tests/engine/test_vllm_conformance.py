"""Undocumented parts of vLLM that the engine uses, for each version that a lock pins.

A version that is not here has not been held to it: these tests must pass with it before it may enter a lock.
"""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import ureca
from ureca.engine.prompts import RegionPrompt
from ureca.model.captioner import Captioner
from ureca.regions.rle import box_to_rle

HELD = ("0.32.0",)
ROOT = Path(ureca.__file__).parents[2]
SIZE = (256, 256)


def pinned(lock: str) -> str:
    (version,) = re.findall(r"^vllm(?:-cpu)?==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
    return version


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-gpu.lock"])
def test_the_pinned_version_is_one_that_was_held_to_this(lock):
    assert pinned(lock) in HELD, f"{lock} pins another vLLM: let the tests of this file pass with it, then add it"


@pytest.mark.slow
def test_what_runs_here_is_a_version_that_was_held_to_this():
    import vllm

    assert vllm.__version__.split("+")[0] in HELD


@pytest.mark.slow
def test_the_names_that_are_used_without_being_documented_are_there():
    from vllm.renderers.base import BaseRenderer

    assert inspect.iscoroutinefunction(BaseRenderer.process_for_engine_async)
    assert "_prompt_embeds" in inspect.getsource(BaseRenderer), "rows of a prompt no longer go in under this name"


@pytest.mark.slow
def test_rows_that_are_words_embeddings_say_what_the_words_say(running_engine, tiny_export):
    """Prompt embeddings stand where they are put, in order, unscaled: else these would part from the words."""
    engine, captioner = running_engine.engine, Captioner.from_pretrained(tiny_export)
    processor, embed = captioner.processor, captioner.base.get_input_embeddings()
    image = np.random.default_rng(4).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    words = processor.tokenizer("the large red part of the left wheel", add_special_tokens=False)["input_ids"]
    rest = processor.branch_ids(processor.query("brief"))
    with torch.no_grad():
        rows = embed(torch.tensor(words)).float()

    async def caption(region: RegionPrompt):
        from vllm import SamplingParams

        prompt = await engine._vllm_prompt(engine.prompts.image(image), region, None)
        params = SamplingParams(temperature=0.0, max_tokens=8, min_tokens=8, logprobs=0)
        async for output in engine._llm.generate(prompt, params, f"conformance-{len(region.branch_ids)}"):
            last = output.outputs[0]
        return last.token_ids, [of[token].logprob for token, of in zip(last.token_ids, last.logprobs, strict=True)]

    as_words = running_engine.run(caption(RegionPrompt(None, [*words, *rest])))
    as_rows = running_engine.run(caption(RegionPrompt(rows, rest)))
    turned = running_engine.run(caption(RegionPrompt(rows.flip(0), rest)))
    assert list(as_rows[0]) == list(as_words[0])
    assert as_rows[1] == pytest.approx(as_words[1], abs=1e-4)
    assert turned[1] != pytest.approx(as_words[1], abs=1e-4), "another order would go unnoticed"


@pytest.mark.slow
def test_two_masks_of_one_image_share_its_blocks_and_nothing_more(running_engine):
    """Blocks are found again by the rows' content: equal placeholder ids alone must not make two masks equal."""
    engine = running_engine.engine
    image = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    left, right = (box_to_rle((x, 10, x + 100, 200), SIZE) for x in (0, 150))
    query = engine.prompts.processor.query("detailed")
    first, second = (
        running_engine.run(engine.caption(image, [mask], [query], max_tokens=12, min_tokens=12))[0]
        for mask in (left, right)
    )
    prefix = len(engine.prompts.image(image).prefix_ids)
    assert first.cached_tokens == 0
    assert 0 < second.cached_tokens <= prefix
    assert first.token_ids != second.token_ids
