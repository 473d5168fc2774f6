"""A backend that measures masks instead of captioning them, and fixtures that serve it."""

import asyncio
from collections.abc import AsyncGenerator, Iterator

import pytest

from support.live_server import on_a_port
from ureca.engine.results import Caption, Event, RegionFault, collect_captions
from ureca.regions.rle import rle_area, rle_bbox
from ureca.serving.api.app import create_app
from ureca.serving.api.backend import CaptionCall
from ureca.serving.settings import Limits

LIMITS = Limits(max_request_bytes=400_000, max_image_pixels=10_000, max_regions=8, max_tokens=64)


class MeasuringBackend:
    """Captions each region with its area and box, in four pieces; fails on demand. Rejects questions with "<|"."""

    def __init__(self) -> None:
        self.calls: list[CaptionCall] = []
        self.failure: Exception | None = None
        self.fails_after = 0
        """Number of regions answered before a failure."""
        self.num_failures: int | None = None
        """Number of first calls that fail; None: all."""
        self.num_closed = 0
        self.seconds = 0.0
        """Seconds per region."""
        self.piece_seconds = 0.0
        """Seconds per piece."""

    async def caption(self, call: CaptionCall) -> list[Caption | RegionFault]:
        return await collect_captions(self.stream(call))

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
def api_url(backend: MeasuringBackend) -> Iterator[str]:
    """The same over real HTTP."""
    with on_a_port(create_app({"measured": backend}, limits=LIMITS)) as url:
        yield url
