"""Bearer tokens: who is let in, and that nothing of a token is kept."""

import pytest
from fastapi.testclient import TestClient
from support.request_images import data_url, photo

from ureca.cli.main import run
from ureca.errors import ConfigError
from ureca.serving.api.app import create_app
from ureca.serving.middleware.auth import new_token
from ureca.serving.settings import AccessToken, Limits

BODY = {"image": data_url(photo()), "regions": [{"box": [0, 0, 5, 5]}]}
TOKENS = {name: new_token() for name in ("ada", "grace")}


@pytest.fixture
def guarded(backend):
    known = [AccessToken(name=name, sha256=digest) for name, (_, digest) in TOKENS.items()]
    app = create_app({"measured": backend}, limits=Limits(max_request_bytes=400_000), access_tokens=known)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        pytest.param(f"Basic {TOKENS['ada'][0]}", id="basic"),
        pytest.param(TOKENS["ada"][0], id="no scheme"),
        "Bearer \u00e9",
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/captions", "/v1/trees", "/v1/regions", "/v1/chat/completions", "/chat/completions", "/v1/nothing"]
)
def test_without_a_known_token_nothing_is_read(guarded, backend, header, path):
    headers = {} if header is None else {"authorization": header.encode()}
    response = guarded.post(path, json=BODY, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "unauthorized"
    assert backend.calls == []


@pytest.mark.parametrize("name", TOKENS)
def test_the_hash_that_the_configuration_holds_is_no_token(guarded, name):
    digest = TOKENS[name][1]
    assert guarded.post("/v1/captions", json=BODY, headers={"Authorization": f"Bearer {digest}"}).status_code == 401


@pytest.mark.parametrize("name", TOKENS)
def test_a_known_token_is_let_in_under_its_name(guarded, backend, name):
    response = guarded.post("/v1/captions", json=BODY, headers={"Authorization": f"bearer {TOKENS[name][0]}"})
    assert response.status_code == 200
    assert backend.calls[0].tenant == name


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/page/page.js"])
def test_probes_documentation_and_the_page_need_no_token(guarded, path):
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("prefix", ["/captions", "/page"])
def test_the_same_holds_below_a_route_prefix(guarded, prefix):
    """Serve keeps the prefix in the path and passes it as the root path."""
    below = TestClient(guarded.app, root_path=prefix)
    assert below.get(f"{prefix}/healthz").status_code == 200
    assert below.post(f"{prefix}/v1/captions", json=BODY).status_code == 401


def test_a_body_of_somebody_unknown_is_not_even_measured(guarded):
    response = guarded.post("/v1/captions", content=b"x" * 500_000)
    assert response.status_code == 401


def test_a_service_without_tokens_asks_for_none(api, backend):
    assert api.post("/v1/captions", json=BODY).status_code == 200
    assert backend.calls[0].tenant == ""


def test_the_command_prints_a_token_and_what_is_configured_of_it(capsys):
    run(["token", "ada"])
    shown = capsys.readouterr().out
    token = shown.split("once:")[1].split()[0]
    digest = shown.split("sha256:")[1].split()[0]
    AccessToken(name="ada", sha256=digest)
    assert token not in shown.split("captioner.yaml:")[1]
    with pytest.raises(ConfigError, match="give one name"):
        run(["token"])
