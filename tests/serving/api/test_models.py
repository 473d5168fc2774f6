"""Several captioners side by side: a request's `model` says which of them it means."""

import re

import pytest
from fastapi.testclient import TestClient
from support.request_images import data_url, photo

from ureca.serving.api.app import create_app
from ureca.serving.api.backend import UnavailableError
from ureca.serving.api.chat import DAM_MODEL
from ureca.serving.settings import Limits

BODY = {"image": data_url(photo()), "regions": [{"box": [10, 5, 20, 10]}]}
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


@pytest.fixture
def backends(backend):
    return {"large": backend, "small": type(backend)()}


@pytest.fixture
def api(backends):
    return TestClient(create_app(backends, limits=Limits(max_request_bytes=400_000)), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/captions", BODY), ("/v1/trees", BODY), ("/v1/chat/completions", CHAT)]
)
@pytest.mark.parametrize(
    ("asked", "meant"), [({}, "large"), ({"model": "large"}, "large"), ({"model": "small"}, "small")]
)
def test_a_request_goes_to_the_model_that_it_names_or_to_the_first(api, backends, path, body, asked, meant):
    response = api.post(path, json={**body, **asked})
    assert response.status_code == 200
    assert response.json()["model"] == meant
    assert {name: len(backend.calls) for name, backend in backends.items()} == {
        name: int(name == meant) for name in backends
    }


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/captions", BODY), ("/v1/trees", BODY), ("/v1/chat/completions", CHAT)]
)
def test_another_is_not_found_and_those_that_are_there_are_named(api, path, body):
    response = api.post(path, json={**body, "model": "huge"})
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "model_not_found"
    assert re.search("huge.*large, small", response.json()["error"]["message"])


def test_describe_anything_s_name_means_the_first(api):
    assert api.post("/v1/chat/completions", json={**CHAT, "model": DAM_MODEL}).json()["model"] == "large"


def test_all_are_listed(api):
    assert [each["id"] for each in api.get("/v1/models").json()["data"]] == ["large", "small"]


def test_the_service_is_ready_when_all_are(api, backends):
    assert api.get("/readyz").status_code == 200
    backends["small"].failure = UnavailableError("its engine is starting")
    response = api.get("/readyz")
    assert response.status_code == 503
    assert "small: its engine is starting" in response.json()["error"]["message"]
