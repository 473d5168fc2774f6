"""The vLLM engine itself: started once, on random weights."""

import asyncio

import numpy as np
import pytest
import torch

from ureca.engine.engine import CaptionEngine
from ureca.engine.parity import compare_with_transformers
from ureca.engine.results import Caption, RegionFault, collect_captions
from ureca.errors import ConfigError, InputError
from ureca.model.captioner import Captioner
from ureca.regions.rle import box_to_rle

pytestmark = pytest.mark.slow

WIDE, SQUARE = (256, 700), (256, 256)
BLOCK = 128  # tokens, of vLLM's KV cache on a CPU


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def boxes(size: tuple[int, int], count: int) -> list:
    height, width = size
    step = width // (count + 1)
    return [box_to_rle((i * step, 10 * i, i * step + 60, height - 20 * i), size) for i in range(count)]


def queries(engine: CaptionEngine, count: int) -> list[str]:
    styles = ("brief", "detailed", "unique")
    return [engine.prompts.processor.query(styles[index % 3]) for index in range(count)]


def num_unfinished(engine: CaptionEngine) -> int:
    return engine._llm.output_processor.get_num_unfinished_requests()


@pytest.fixture(scope="module")
def engine(running_engine):
    return running_engine.engine


@pytest.fixture(scope="module")
def captioner(tiny_export):
    return Captioner.from_pretrained(tiny_export)


@pytest.mark.parametrize("size", [WIDE, SQUARE])
def test_captions_equal_transformers_token_for_token(running_engine, engine, captioner, size):
    image, rles, asked = picture(size, 1), boxes(size, 6), queries(engine, 6)
    captions = running_engine.run(engine.caption(image, rles, asked, max_tokens=24))
    assert len({caption.token_ids for caption in captions}) > 1, "alike captions would prove nothing"
    found = compare_with_transformers(captioner, image, rles, asked, captions, max_tokens=24)
    assert found.requests == 6
    assert found.holds, found.differing
    assert found.equal >= 5


def test_a_token_that_is_not_the_likeliest_is_noticed(running_engine, engine, captioner):
    image, rles, asked = picture(SQUARE, 1), boxes(SQUARE, 2), queries(engine, 2)
    first, second = running_engine.run(engine.caption(image, rles, asked, max_tokens=8))
    ids = (*first.token_ids[:3], (first.token_ids[3] + 1) % 600, *first.token_ids[4:])
    altered = Caption(first.text, first.finish_reason, ids, 0, 0, 8)
    found = compare_with_transformers(captioner, image, rles, asked, [altered, second], max_tokens=8)
    assert not found.holds
    assert [(each.request, each.position) for each in found.differing] == [(0, 3)]
    assert found.differing[0].margin > 1e-3


def test_regions_find_the_image_prefix_of_the_first_one_in_the_cache(running_engine, engine):
    captions = running_engine.run(engine.caption(picture(WIDE, 2), boxes(WIDE, 4), queries(engine, 4), max_tokens=4))
    prefix = len(engine.prompts.image(picture(WIDE, 2)).prefix_ids)
    assert [caption.cached_tokens for caption in captions] == [0, *[prefix // BLOCK * BLOCK] * 3]
    again = running_engine.run(engine.caption(picture(WIDE, 2), boxes(WIDE, 1), queries(engine, 1), max_tokens=4))
    assert again[0].cached_tokens >= prefix // BLOCK * BLOCK


def test_what_one_tenant_leaves_in_the_cache_serves_no_other(running_engine, engine):
    def cached(salt: str | None) -> int:
        call = engine.caption(picture(WIDE, 9), boxes(WIDE, 1), queries(engine, 1), max_tokens=2, cache_salt=salt)
        return running_engine.run(call)[0].cached_tokens

    assert cached("ada") == 0
    assert cached("ada") > 0
    assert cached("grace") == 0
    assert cached(None) == 0


def test_what_is_kept_of_an_image_is_kept_for_one_tenant(running_engine, engine):
    """vLLM names processed images by what it is received, and looks for them under that name whoever asks."""
    image = engine.prompts.image(picture(WIDE, 11))
    [region] = engine.prompts.regions(boxes(WIDE, 1), queries(engine, 1))

    def name(salt: str | None) -> str:
        prompt = running_engine.run(engine._vllm_prompt(image, region, salt))
        [kept] = prompt["mm_hashes"]["image"]
        return kept

    assert name("ada") == name("ada")
    assert len({name("ada"), name("grace"), name(None)}) == 3


def test_a_region_s_faulty_question_leaves_the_others_their_captions(running_engine, engine):
    image, rles = picture(SQUARE, 12), boxes(SQUARE, 3)
    good = queries(engine, 3)
    alone = running_engine.run(engine.caption(image, [rles[1], rles[2]], good[1:], max_tokens=5))
    asked = ["what is <IMG_CONTEXT>?", *good[1:]]
    stream = engine.stream(image, rles, asked, max_tokens=5, faults_in_place=True)
    fault, *captions = running_engine.run(collect_captions(stream))
    assert isinstance(fault, RegionFault)
    assert "holds '<IMG_CONTEXT>'" in fault.message
    assert [each.text for each in captions] == [each.text for each in alone]


def test_log_probabilities_come_where_asked_for_one_a_token(running_engine, engine, captioner):
    image, rles, asked = picture(SQUARE, 10), boxes(SQUARE, 2), queries(engine, 2)
    plain = running_engine.run(engine.caption(image, rles, asked, max_tokens=6))
    received = running_engine.run(engine.caption(image, rles, asked, max_tokens=6, logprobs=True))
    assert all(caption.logprobs is None for caption in plain)
    for before, caption in zip(plain, received, strict=True):
        assert caption.token_ids == before.token_ids
        assert caption.logprobs is not None
        assert len(caption.logprobs) == caption.completion_tokens
        assert all(logprob <= 0 for _, logprob in caption.logprobs)
    embeddings, mask = captioner.prompt_embeddings(image, rles, asked)
    with torch.no_grad():
        logits = captioner.base(inputs_embeds=embeddings, attention_mask=mask).logits[:, -1]
    for caption, row in zip(received, logits.log_softmax(-1), strict=True):
        assert caption.logprobs[0][1] == pytest.approx(float(row[caption.token_ids[0]]), abs=1e-3)


def test_a_question_with_a_control_token_is_refused(running_engine, engine):
    with pytest.raises(InputError, match="'<IMG_CONTEXT>'"):
        running_engine.run(engine.caption(picture(SQUARE, 6), [None], ["what is <IMG_CONTEXT>?"], max_tokens=5))


def test_the_mask_decides_and_the_cache_does_not(running_engine, engine):
    image, rles, asked = picture(WIDE, 3), boxes(WIDE, 5), queries(engine, 1) * 5
    together = running_engine.run(engine.caption(image, rles, asked, max_tokens=12))
    for rle, query, expected in zip(rles, asked, together, strict=True):
        [alone] = running_engine.run(engine.caption(image, [rle], [query], max_tokens=12))
        assert alone.token_ids == expected.token_ids
    assert len({caption.token_ids for caption in together}) > 1


def test_stream_tells_every_piece_and_then_the_whole(running_engine, engine):
    async def collect() -> list:
        stream = engine.stream(picture(SQUARE, 4), boxes(SQUARE, 3), queries(engine, 3), max_tokens=12)
        return [event async for event in stream]

    events = running_engine.run(collect())
    for index in range(3):
        own = [event for number, event in events if number == index]
        *pieces, whole = own
        assert isinstance(whole, Caption)
        assert all(isinstance(piece, str) for piece in pieces)
        assert " ".join("".join(pieces).split()) == whole.text
        assert whole.completion_tokens == len(whole.token_ids)
        assert whole.finish_reason == ("length" if whole.completion_tokens == 12 else "stop")
    first_of_second = next(place for place, (number, _) in enumerate(events) if number == 1)
    assert any(number == 0 for number, _ in events[:first_of_second]), "the first region goes first"


def test_closing_a_stream_or_cancelling_a_call_ends_its_requests(running_engine, engine):
    image, rles, asked = picture(SQUARE, 5), boxes(SQUARE, 6), queries(engine, 6)

    async def close_early() -> int:
        stream = engine.stream(image, rles, asked, max_tokens=200)
        async for _ in stream:
            if num_unfinished(engine) > 2:
                break
        await stream.aclose()
        return num_unfinished(engine)

    async def cancel() -> int:
        call = asyncio.create_task(engine.caption(image, rles, asked, max_tokens=200))
        while num_unfinished(engine) < 2:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return num_unfinished(engine)

    assert running_engine.run(close_early()) == 0
    assert running_engine.run(cancel()) == 0
    running_engine.run(engine.check_health())


def test_a_prompt_that_does_not_fit_is_refused_and_the_engine_lives(running_engine, engine):
    with pytest.raises(InputError, match="5000.*max_model_len="):
        running_engine.run(engine.caption(picture(SQUARE, 6), [None], ["q"], max_tokens=5000))
    running_engine.run(engine.check_health())


def test_ids_unlike_those_of_training_are_noticed(running_engine, engine, monkeypatch):
    sent = engine.prompts.sent_ids
    monkeypatch.setattr(engine.prompts, "sent_ids", lambda *arguments: sent(*arguments)[:-1])
    with pytest.raises(RuntimeError, match="captioner"):
        running_engine.run(engine.caption(picture(SQUARE, 7), boxes(SQUARE, 1), ["q"]))
    assert num_unfinished(engine) == 0


def test_an_engine_that_was_not_started_is_not_healthy(tiny_export):
    with pytest.raises(RuntimeError, match="started"):
        asyncio.run(CaptionEngine(tiny_export).check_health())
    with pytest.raises(ConfigError, match="engine dtype='float16'"):
        CaptionEngine(tiny_export, dtype="float16")
