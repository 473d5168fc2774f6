"""OpenAI's form of the API, asked by the official client and by hand."""

import json

import httpx
import numpy as np
import openai
import pytest
from support.request_images import HEIGHT, WIDTH, data_url, photo, with_alpha

from ureca.errors import InputError
from ureca.serving.api.chat import DAM_MODEL

BOX = {"type": "mask", "box": [10, 5, 20, 10]}
IMAGE = {"type": "image_url", "image_url": {"url": data_url(photo())}}


def message(*parts: dict) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture
def client(api_url):
    with openai.OpenAI(base_url=f"{api_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_official_client_gets_a_caption(client):
    assert [each.id for each in client.models.list()] == ["measured"]
    answer = client.chat.completions.create(model="measured", messages=message(IMAGE, BOX), max_tokens=16)
    [choice] = answer.choices
    assert choice.message.content == "unique 200 at 10,5,20,10"
    assert (choice.finish_reason, choice.message.role, answer.model) == ("stop", "assistant", "measured")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (300, 2, 302)
    assert isinstance(answer.created, int)


def test_the_official_client_reads_the_stream(client):
    other = {"type": "mask", "box": [0, 0, 5, 5]}
    stream = client.chat.completions.create(
        model="measured",
        messages=message(IMAGE, BOX, other),
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, ends, usage = {0: "", 1: ""}, {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == {0: "unique 200 at 10,5,20,10", 1: "unique 25 at 0,0,5,5"}
    assert ends == {0: "stop", 1: "stop"}
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (600, 256)


def test_a_text_is_the_question_and_style_stands_in_for_one(client, backend):
    text = {"type": "text", "text": "What is  its color?"}
    asked = client.chat.completions.create(model="measured", messages=message(IMAGE, BOX, text))
    assert asked.choices[0].message.content == "What is its color? 200 at 10,5,20,10"
    client.chat.completions.create(model="measured", messages=message(IMAGE, BOX), extra_body={"style": "brief"})
    assert backend.calls[1].regions[0].style == "brief"


def test_log_probabilities_have_openai_s_form(client):
    answer = client.chat.completions.create(model="measured", messages=message(IMAGE, BOX), logprobs=True)
    assert [(each.token, each.logprob) for each in answer.choices[0].logprobs.content] == [("a", -0.5), ("b", -0.25)]


def test_without_a_region_the_whole_image_is_asked_about(client):
    answer = client.chat.completions.create(model="measured", messages=message(IMAGE))
    assert answer.choices[0].message.content == f"unique {HEIGHT * WIDTH} at 0,0,{WIDTH},{HEIGHT}"


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_describe_anything_s_clients_are_understood(api_url, path):
    """The request as that server's own example sends it: one RGBA PNG, and a text that marks the image's place."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 10:30] = True
    body = {
        "model": DAM_MODEL,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": data_url(with_alpha(photo(), mask))}},
                    {"type": "text", "text": "<image>\nDescribe the masked region in detail."},
                ],
            }
        ],
        "max_tokens": 32,
        "temperature": 0.2,
        "top_p": 0.5,
    }
    answer = httpx.post(api_url + path, json=body).json()
    said = answer["choices"][0]["message"]["content"]
    assert said == "Describe the masked region in detail. 200 at 10,5,20,10"
    body["stream"] = True
    lines = [line.removeprefix("data: ") for line in httpx.post(api_url + path, json=body).text.split("\n\n") if line]
    deltas = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    assert "".join(deltas) == said
    assert lines[-1] == "[DONE]"


def test_what_that_server_ignores_is_honored(client, backend):
    client.chat.completions.create(
        model="measured", messages=message(IMAGE, BOX), temperature=0.5, top_p=0.25, max_completion_tokens=9
    )
    sampling = backend.calls[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.25, 9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"messages": message(BOX)}, "request"),
        ({"messages": message(IMAGE, IMAGE)}, "2 images"),
        ({"messages": message(IMAGE, {"type": "prompt_embeds", "data": "AAAA"})}, "'prompt_embeds'"),
        ({"messages": message(IMAGE, {"type": "mask"})}, "region"),
        ({"messages": message(IMAGE, {"type": "mask", "box": [0, 0, 0, 0]})}, "width"),
        ({"messages": message({"type": "image_url", "image_url": {"url": 5}})}, "image"),
        ({"messages": message({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a"}})}, "not fetched"),
        ({"messages": [{"role": "system", "content": "Be short."}, *message(IMAGE, BOX)]}, "message"),
        ({"messages": [{"role": "user", "content": "Hello"}]}, "0 images"),
        ({"messages": message(IMAGE, {"type": "text", "text": "?" * 1001})}, "1001"),
        ({"messages": message(IMAGE, BOX), "n": 2}, "should"),
        ({"messages": message(IMAGE, BOX), "tools": []}, "inputs"),
        ({"messages": message(IMAGE, BOX), "max_tokens": 65}, "64"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_can_t_be_answered_is_the_caller_s_error(api, backend, changes, said):
    response = api.post("/v1/chat/completions", json={"model": "measured", **changes})
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]["message"]
    assert backend.calls == []


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="measured"):
        client.chat.completions.create(model="gpt", messages=message(IMAGE, BOX))


def test_an_alpha_channel_that_marks_nothing_is_said(api):
    empty = with_alpha(photo(), np.zeros((HEIGHT, WIDTH), bool))
    body = {"messages": message({"type": "image_url", "image_url": {"url": data_url(empty)}})}
    response = api.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert "its alpha channel, which marks the region, is 0 everywhere" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_that_the_model_can_t_take_is_refused(api, stream):
    body = {"messages": message(IMAGE, BOX, {"type": "text", "text": "<|what|>?"}), "stream": stream}
    response = api.post("/v1/chat/completions", json=body)
    assert "mask 0: question: it holds a control token" in response.text
    assert stream or response.status_code == 400


def test_a_failure_in_the_middle_of_a_stream_ends_it_with_the_reason(api, backend):
    backend.failure, backend.fails_after = InputError("a prompt of 9 tokens does not fit"), 1
    body = {"messages": message(IMAGE, BOX, BOX), "stream": True}
    *_, error, done, _ = api.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert "does not fit" in json.loads(error.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"
