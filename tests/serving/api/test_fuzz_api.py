"""Requests drawn from the API's own description, right ones and wrong ones: never a fault, always an answer in the
form that the description promises."""

import copy
import json
import random
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from support.request_images import data_url, encoded, photo

from ureca.serving.api.backend import OverloadedError, UnavailableError

fuzzed = settings(
    max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

BOX = [10, 10, 20, 20]
IMAGE = data_url(photo())
HALF = "\ud800"
"""Half of a surrogate pair: valid in JSON, invalid in text."""

VALUES: list[Any] = [
    None, True, 0, -1, 1e308, float("nan"), float("inf"), 10**400, "", "7", HALF, "unique", "image", "mask_png", "text",
    [], [[]], {}, BOX, [[12, 12]], [BOX, BOX], [10, 10, 40, 10, 40, 30], {"size": [40, 60], "counts": [0, 2400]},
    {"box": BOX}, {"type": "mask", "box": BOX}, {"type": "text", "text": "What?"}, {"url": IMAGE}, IMAGE,
    encoded(photo().convert("L")),
]  # fmt: skip
KEYS = [
    "id", "rle", "polygon", "box", "mask_png", "points", "style", "question", "size", "counts", "image", "regions",
    "model", "max_tokens", "temperature", "top_p", "logprobs", "stream", "image_caption", "captions", "type", "text",
    "image_url", "url", "role", "content", "messages", "n", "stream_options", HALF,
]  # fmt: skip
CHAT = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": IMAGE}},
                {"type": "mask", "box": BOX},
                {"type": "text", "text": "What?"},
            ],
        }
    ]
}
REGIONS = [{"id": "a", "box": BOX}, {"polygon": [10, 10, 40, 10, 40, 30], "style": "brief", "question": "What?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/captions": {"image": IMAGE, "regions": REGIONS, "max_tokens": 8},
    "/v1/trees": {"image": IMAGE, "regions": REGIONS},
    "/v1/chat/completions": CHAT,
}


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_drawn_requests_are_answered_as_the_description_says(api, mode):
    for found in schemathesis.openapi.from_asgi("/openapi.json", api.app).get_all_operations():
        operation = found.ok()
        if operation.body or mode is GenerationMode.POSITIVE:  # what asks for nothing can't be asked wrongly
            ask(operation, mode)


def ask(operation: Any, mode: GenerationMode) -> None:
    @fuzzed
    @given(operation.as_strategy(generation_mode=mode))
    def answers(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "image" in case.body:
            case.body["image"] = IMAGE  # no drawn text is one
        # What has a mask that is none is right by the description and refused all the same.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    answers()


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def damaged(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """With values replaced, taken out or put in."""
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(body) or [(body, "image")])
        kind = rng.randrange(3)
        if kind == 0:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 1 and isinstance(container, dict):
            container[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 1:
            container.insert(key, copy.deepcopy(rng.choice(VALUES)))
        elif key in container or isinstance(container, list):
            del container[key]
    return body


@pytest.mark.parametrize("path", BODIES)
def test_damaged_requests_are_refused_in_words(api, path):
    rng = random.Random(0)
    statuses = set()
    for _ in range(400):
        content = json.dumps(damaged(BODIES[path], rng))
        response = api.post(path, content=content, headers={"content-type": "application/json"})
        statuses.add(response.status_code)
        assert response.status_code in (200, 400, 404, 413), content
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"type", "message", "param"}
            assert len(response.text) < 2000
    assert {200, 400} <= statuses


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"image":' * 10_000, b"\xff\xfe", b"\x00", b"1" * 5000, b'"\\ud800"', b"", b"[]"]
)
def test_what_is_no_request_at_all_is_refused(api, content):
    for path in BODIES:
        response = api.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request"


@pytest.mark.parametrize("failure", [OverloadedError(), UnavailableError("its engine is starting")])
def test_what_can_t_be_done_now_is_told_as_the_description_says(api, backend, failure):
    backend.failure = failure
    described = api.get("/openapi.json").json()["paths"]
    for path, body in BODIES.items():
        response = api.post(path, json=body)
        assert response.status_code == 503
        assert response.headers["retry-after"].isdigit()
        assert "Retry-After" in described[path]["post"]["responses"]["503"]["headers"]
