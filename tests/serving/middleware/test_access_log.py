"""Request ids, the access log, and what is counted of requests."""

import json
import logging
import time

import httpx
import pytest
from fastapi.testclient import TestClient
from support.kept_records import KeptRecords
from support.request_images import data_url, photo

from ureca.serving.api.app import create_app
from ureca.serving.api.backend import OverloadedError, UnavailableError
from ureca.serving.metrics import REJECTED, REQUEST_SECONDS, REQUESTS
from ureca.serving.middleware.auth import new_token
from ureca.serving.settings import AccessToken, Limits

BOX = {"id": "7", "box": [10, 5, 20, 10], "question": "What is SECRET?"}
BODY = {"image": data_url(photo()), "regions": [BOX]}
CHAT = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": BODY["image"]}},
                {"type": "mask", "box": [10, 5, 20, 10]},
            ],
        }
    ]
}
TOKEN, DIGEST = new_token()


@pytest.fixture
def recorder():
    return KeptRecords()


@pytest.fixture
def lines(caplog):
    """The access log's lines so far."""
    caplog.set_level(logging.INFO, logger="ureca.serving.middleware.access_log")
    return lambda: [
        json.loads(each.message) for each in caplog.records if each.name == "ureca.serving.middleware.access_log"
    ]


def client_of(backend, recorder, *, max_seconds: float = 300, **options: object) -> TestClient:
    limits = Limits(max_request_bytes=400_000, max_seconds=max_seconds)
    app = create_app({"measured": backend}, limits=limits, recorder=recorder, **options)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def observed(backend, recorder):
    return client_of(backend, recorder)


@pytest.fixture
def guarded(backend, recorder):
    return client_of(backend, recorder, access_tokens=[AccessToken(name="ada", sha256=DIGEST)])


def test_a_sane_request_id_is_taken_over(observed, lines):
    response = observed.post("/v1/captions", json=BODY, headers={"X-Request-Id": "trace-1.a_B"})
    assert response.headers.get_list("x-request-id") == ["trace-1.a_B"]
    assert lines()[0]["request_id"] == "trace-1.a_B"


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, '"}', "\u00e9"])
def test_any_other_gets_one_made_here(observed, lines, given):
    headers = {} if given is None else {"X-Request-Id": given.encode()}
    made = observed.get("/healthz", headers=headers).headers["x-request-id"]
    assert made != given
    assert len(made) == 32
    assert lines()[0]["request_id"] == made


def test_behind_a_proxy_that_answers_the_id_it_stands_in_a_response_once(backend, recorder):
    behind = client_of(backend, recorder, proxy_answers_id=True)
    assert "x-request-id" not in behind.get("/healthz", headers={"X-Request-Id": "from-the-proxy"}).headers
    assert len(behind.get("/healthz", headers={"X-Request-Id": "not sane"}).headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/v1/captions", {**BODY, "stream": True}, 200, None),
        ("/v1/captions", {**BODY, "style": "poetic"}, 400, "invalid_request"),
        ("/v1/captions", {**BODY, "image": "data:image/png;base64,aGVsbG8="}, 400, "invalid_image"),
        ("/v1/captions", {**BODY, "image": "A" * 500_000}, 413, "too_large"),
        ("/v1/captions", {**BODY, "model": "gpt"}, 404, "model_not_found"),
        ("/v1/nothing", BODY, 404, "not_found"),
    ],
)
def test_every_response_has_its_id_its_line_and_its_count(guarded, recorder, lines, path, body, status, reason):
    headers = {"X-Request-Id": "r1", "Authorization": f"Bearer {TOKEN}"}
    response = guarded.post(path, json=body, headers=headers)
    assert response.status_code == status
    assert response.headers["x-request-id"] == "r1"
    [line] = lines()
    assert line.pop("seconds") >= 0
    assert line.pop("time").endswith("+00:00")
    answered = status == 200
    assert line == {
        "request_id": "r1",
        "method": "POST",
        "path": path,
        "status": status,
        "tenant": "" if reason == "too_large" and not line["tenant"] else "ada",
        "model": None if reason in ("model_not_found", "not_found", "too_large") or body.get("style") else "measured",
        "regions": 1 if answered else 0,
        "rejected": reason,
    }
    # A route and never a path: the number of series stays what it is, whatever is asked for.
    route = "none" if path == "/v1/nothing" or reason == "too_large" else path
    assert recorder.count(REQUESTS) == {f"{route} POST {status}": 1}
    assert recorder.count(REQUEST_SECONDS).keys() == {route}
    assert recorder.count(REJECTED) == ({} if reason is None else {reason: 1})


def test_nothing_of_what_was_sent_is_logged(guarded, lines, caplog):
    guarded.post(f"/v1/captions?key={TOKEN}", json=BODY, headers={"Authorization": f"Bearer {TOKEN}"})
    guarded.post("/v1/captions", json=BODY, headers={"Authorization": "Bearer wrong-SECRET"})
    assert [line["status"] for line in lines()] == [200, 401]
    for hidden in (TOKEN, "SECRET", "base64", "unique 200"):
        assert hidden not in caplog.text


def test_a_request_without_a_token_is_counted_as_unauthorized(guarded, recorder, lines):
    response = guarded.post("/v1/captions", json=BODY)
    assert response.headers["x-request-id"] == lines()[0]["request_id"]
    assert (lines()[0]["tenant"], lines()[0]["rejected"]) == ("", "unauthorized")
    assert recorder.count(REJECTED) == {"unauthorized": 1}


def test_regions_with_errors_are_counted_each(observed, recorder, lines):
    bad = {"box": [0, 0, 0, 0]}
    assert observed.post("/v1/captions", json={**BODY, "regions": [bad, BOX, bad]}).status_code == 200
    assert recorder.count(REJECTED) == {"invalid_region": 2}
    assert (lines()[0]["regions"], lines()[0]["rejected"]) == (1, None)


def test_a_fault_is_answered_counted_and_logged_under_the_request_s_id(observed, backend, recorder, lines, caplog):
    backend.failure = ZeroDivisionError("broken")
    response = observed.post("/v1/captions", json=BODY, headers={"X-Request-Id": "r2"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "r2"
    assert response.json()["error"]["type"] == "internal_error"
    streamed = observed.post("/v1/captions", json={**BODY, "stream": True}, headers={"X-Request-Id": "r3"})
    assert streamed.headers["x-request-id"] == "r3"
    assert [(line["request_id"], line["status"], line["rejected"]) for line in lines()] == [
        ("r2", 500, "internal_error"),
        ("r3", 500, "internal_error"),
    ]
    assert recorder.count(REJECTED) == {"internal_error": 2}
    faults = [each for each in caplog.records if each.levelname == "ERROR"]
    assert [each.message for each in faults] == [f"request {each}: captioning failed" for each in ("r2", "r3")]
    assert all(each.exc_info and each.exc_info[0] is ZeroDivisionError for each in faults)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/captions", BODY),
        ("/v1/captions", {**BODY, "stream": True}),
        ("/v1/trees", BODY),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/chat/completions", CHAT),
    ],
)
@pytest.mark.parametrize("failure", [OverloadedError(), UnavailableError("gone"), None])
def test_every_503_says_when_to_come_back(backend, recorder, path, body, failure):
    """A stream's too: nothing of it has been received yet."""
    backend.failure, backend.seconds = failure, 60.0
    client = client_of(backend, recorder, max_seconds=60 if failure else 0.5)
    response = client.post(path, json=body)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    kind = {OverloadedError: "overloaded", UnavailableError: "unavailable"}.get(type(failure), "timeout")
    assert recorder.count(REJECTED) == {kind: 1}


def test_readiness_s_503_says_it_too(observed, backend):
    backend.failure = UnavailableError("starting")
    assert observed.get("/readyz").headers["retry-after"] == "5"


def test_a_client_that_leaves_a_stream_is_told_from_one_that_stays(api_url, lines, backend):
    backend.seconds = 0.1
    many = {**BODY, "regions": [{"box": [0, 0, 5 + i, 5]} for i in range(8)], "stream": True}
    with httpx.stream("POST", f"{api_url}/v1/captions", json=many) as response:
        next(response.iter_lines())
    httpx.post(f"{api_url}/v1/captions", json=BODY)
    assert [line["status"] for line in lines()] == [499, 200]


@pytest.mark.parametrize(("path", "body"), [("/v1/captions", BODY), ("/v1/chat/completions", CHAT)])
def test_a_client_that_leaves_before_its_stream_begins_ends_the_work_behind_it(api_url, lines, backend, path, body):
    backend.seconds = 60
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(api_url + path, json={**body, "stream": True}, timeout=1)
    deadline = time.monotonic() + 10
    while not backend.num_closed:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    backend.seconds = 0
    httpx.post(api_url + path, json=body)
    assert [line["status"] for line in lines()] == [499, 200]
