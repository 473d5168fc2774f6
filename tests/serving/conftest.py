"""The API in front of a backend that measures masks instead of captioning, in this process and on a port."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support import page_driver
from support.chromium import chromium
from support.live_server import on_a_port
from support.measuring_backend import LIMITS, MeasuringBackend

from ureca.serving.api.app import create_app


@pytest.fixture
def api(backend: MeasuringBackend) -> TestClient:
    app = create_app({"measured": backend}, limits=LIMITS)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def slow_api(backend: MeasuringBackend) -> TestClient:
    backend.seconds = 60
    app = create_app({"measured": backend}, limits=LIMITS.model_copy(update={"max_seconds": 0.2}))
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page_url(backend: MeasuringBackend) -> Iterator[str]:
    with on_a_port(create_app({"measured": backend}, limits=page_driver.LIMITS)) as url:
        yield url


@pytest.fixture
def second_backend() -> MeasuringBackend:
    return MeasuringBackend()


@pytest.fixture
def two_models_url(backend: MeasuringBackend, second_backend: MeasuringBackend) -> Iterator[str]:
    backends = {"nano_one": backend, "other": second_backend}
    with on_a_port(create_app(backends, limits=page_driver.LIMITS)) as url:
        yield url


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a service. In the end it has asked nobody else, and has met no error but `page.expected`."""
    pages = []

    def open_it(url: str, **options: object) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.errors, page.requests, page.expected = [], [], "^$"
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(url)
        pages.append((page, url))
        return page

    yield open_it
    for page, url in pages:
        assert [error for error in page.errors if not re.search(page.expected, error)] == []
        assert {each for each in page.requests if not each.startswith((url, f"blob:{url}", "data:"))} == set()
        page.context.close()


@pytest.fixture
def page(open_page: Callable[..., Any], page_url: str) -> Any:
    return open_page(page_url)
