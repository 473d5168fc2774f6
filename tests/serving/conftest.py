"""The API in front of a backend that measures masks instead of captioning, in this process and on a port."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import page_driver
import pytest
from chromium import chromium
from fastapi.testclient import TestClient
from on_a_port import on_a_port

from ureca.engine.caption import Caption, Event, RegionFault, whole_captions
from ureca.regions.rle import rle_area, rle_bbox
from ureca.serving.api import create_app
from ureca.serving.calls import CaptionCall
from ureca.serving.settings import Limits

LIMITS = Limits(max_request_bytes=400_000, max_image_pixels=10_000, max_regions=8, max_tokens=64)


class MeasuringBackend:
    """Says of each region its area and box, in four pieces; fails where it is told to. Takes no question with "<|"."""

    def __init__(self) -> None:
        self.calls: list[CaptionCall] = []
        self.failure: Exception | None = None
        self.fails_after = 0
        """So many regions are answered before."""
        self.num_failures: int | None = None
        """So many calls fail, the first ones; None: all."""
        self.num_closed = 0
        self.seconds = 0.0
        """That each region takes."""
        self.piece_seconds = 0.0
        """That each of its pieces takes."""

    async def caption(self, call: CaptionCall) -> list[Caption | RegionFault]:
        return await whole_captions(self.stream(call))

    async def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, Event]]:
        self.calls.append(call)
        failure = self.failure if self.num_failures is None or len(self.calls) <= self.num_failures else None
        try:
            for index, region in enumerate(call.regions):
                rle = region.segmentation
                if failure and index >= self.fails_after:
                    raise failure
                box = ",".join(f"{value:g}" for value in rle_bbox(rle))
                pieces = [region.question or region.style, " ", f"{rle_area(rle)}", f" at {box}"]
                await asyncio.sleep(self.seconds)
                if "<|" in (region.question or ""):
                    yield index, RegionFault("it holds a control token")
                    continue
                for piece in pieces:
                    await asyncio.sleep(self.piece_seconds)
                    yield index, piece
                logprobs = (("a", -0.5), ("b", -0.25)) if call.sampling.logprobs else None
                yield index, Caption("".join(pieces), "stop", (1, 2), 300, 256 if index else 0, 2, logprobs)
        finally:
            self.num_closed += 1

    async def check_health(self) -> None:
        if self.failure:
            raise self.failure


@pytest.fixture
def backend() -> MeasuringBackend:
    return MeasuringBackend()


@pytest.fixture
def api(backend: MeasuringBackend) -> TestClient:
    app = create_app({"measured": backend}, limits=LIMITS)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def slow_api(backend: MeasuringBackend) -> TestClient:
    backend.seconds = 60
    app = create_app({"measured": backend}, limits=LIMITS.model_copy(update={"max_seconds": 0.2}))
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def api_url(backend: MeasuringBackend) -> Iterator[str]:
    """The same over real HTTP."""
    with on_a_port(create_app({"measured": backend}, limits=LIMITS)) as url:
        yield url


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
