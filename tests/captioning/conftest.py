"""A small corpus with one broken image, and services that caption it over HTTP."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.caption_backends import TOKEN, AreaBackend
from support.live_server import on_a_port

from ureca.nano.scenes.files import write_scenes
from ureca.serving.api.app import create_app
from ureca.serving.settings import AccessToken, Limits

NUM_SCENES = 6
BROKEN = "scene_000002"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with six drawn scenes, one of them truncated."""
    folder = tmp_path_factory.mktemp("corpus")
    write_scenes(folder, range(NUM_SCENES))
    photo = folder / f"{BROKEN}.jpg"
    photo.write_bytes(photo.read_bytes()[:2000])
    return folder


@pytest.fixture
def backend() -> AreaBackend:
    return AreaBackend()


@pytest.fixture
def service(backend: AreaBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a service with this backend that requires a token; the token is in the environment."""
    known = AccessToken(name="tests", sha256=hashlib.sha256(TOKEN.encode()).hexdigest())
    monkeypatch.setenv("URECA_TOKEN", TOKEN)
    with on_a_port(create_app({"areas": backend}, limits=Limits(), access_tokens=[known])) as url:
        yield url
