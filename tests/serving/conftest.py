"""The API in front of a backend that measures masks instead of captioning, in this process and on a port."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator

import pytest
import uvicorn
from fastapi.testclient import TestClient

from ureca.engine.caption import Caption
from ureca.regions.rle import rle_area, rle_bbox
from ureca.serving.api import create_app
from ureca.serving.calls import CaptionCall
from ureca.serving.settings import Limits

LIMITS = Limits(max_request_bytes=400_000, max_image_pixels=10_000, max_regions=8, max_tokens=64)


class MeasuringBackend:
    """Says of each region its area and box, in four pieces; fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[CaptionCall] = []
        self.failure: Exception | None = None
        self.fails_after = 0
        self.num_closed = 0
        self.seconds = 0.0
        """That each region takes."""

    async def caption(self, call: CaptionCall) -> list[Caption]:
        return [event async for _, event in self.stream(call) if isinstance(event, Caption)]

    async def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, str | Caption]]:
        self.calls.append(call)
        try:
            for index, region in enumerate(call.regions):
                rle = region.segmentation
                if self.failure and index >= self.fails_after:
                    raise self.failure
                box = ",".join(f"{value:g}" for value in rle_bbox(rle))
                pieces = [region.question or region.style, " ", f"{rle_area(rle)}", f" at {box}"]
                await asyncio.sleep(self.seconds)
                for piece in pieces:
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
    app = create_app(backend, model_name="measured", limits=LIMITS)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def slow_api(backend: MeasuringBackend) -> TestClient:
    backend.seconds = 60
    app = create_app(backend, model_name="measured", limits=LIMITS.model_copy(update={"max_seconds": 0.2}))
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def api_url(backend: MeasuringBackend) -> Iterator[str]:
    """The same over real HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(backend, model_name="measured", limits=LIMITS)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
