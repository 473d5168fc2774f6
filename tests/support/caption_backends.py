"""Caption backends for services in tests."""

import asyncio
from collections.abc import AsyncGenerator

from ureca.engine.results import Caption
from ureca.model.captioner import Captioner
from ureca.regions.rle import rle_area
from ureca.serving.api.backend import CaptionCall

TOKEN = "let me in"
"""Access token of the services in tests."""


class AreaBackend:
    """Backend whose captions name style and area of the region; raises `failure` if set."""

    def __init__(self) -> None:
        self.calls: list[CaptionCall] = []
        self.failure: Exception | None = None
        self.is_healthy = True
        self.seconds = 0.01
        self.caption_of = "{style} {area}"

    async def caption(self, call: CaptionCall) -> list[Caption]:
        self.calls.append(call)
        if self.failure:
            raise self.failure
        await asyncio.sleep(self.seconds)
        return [
            Caption(
                self.caption_of.format(style=region.style, area=rle_area(region.segmentation)),
                "stop",
                (1, 2),
                prompt_tokens=300,
                cached_tokens=256 if index else 0,
                completion_tokens=2,
            )
            for index, region in enumerate(call.regions)
        ]

    def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, str | Caption]]:
        raise NotImplementedError

    async def check_health(self) -> None:
        if not self.is_healthy:
            raise RuntimeError("unhealthy")


class TransformersBackend(AreaBackend):
    """Backend that runs a captioner without vLLM."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.captioner = captioner

    async def caption(self, call: CaptionCall) -> list[Caption]:
        self.calls.append(call)
        texts = self.captioner.generate(
            call.image,
            [region.segmentation for region in call.regions],
            [self.captioner.processor.query(region.style) for region in call.regions],
            max_new_tokens=call.sampling.max_tokens,
        )
        return [Caption(text, "stop", (1,), 300, 0, 1) for text in texts]
