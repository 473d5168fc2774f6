"""Metrics of the service and of calls to an engine, and their export to Ray.

The API and the replicas record to a `Recorder`. On Ray Serve that is `RayRecorder`, whose metrics appear in every
node's export as `ray_ureca_…`, next to Ray's and vLLM's.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ureca.engine.results import Caption, Event, RegionFault


@dataclass(frozen=True)
class Metric:
    name: str
    """Prometheus name, without the exporter's prefix and, for counters, without `_total`."""
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    tags: tuple[str, ...]
    boundaries: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in seconds."""


REPORT_SECONDS = 5.0
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

REQUESTS = Metric("ureca_requests", "counter", "HTTP requests, by route and status.", ("route", "method", "status"))
REQUEST_SECONDS = Metric(
    "ureca_request_seconds", "histogram", "Duration of an HTTP request, streams included.", ("route",), _SECONDS
)
REJECTED = Metric(
    "ureca_rejected", "counter", "Requests, and regions in them (invalid_region), refused or failed.", ("reason",)
)
REGIONS = Metric(
    "ureca_regions",
    "counter",
    "Regions that left the engine: stop, length (cut at max_tokens), or abandoned without a caption.",
    ("model", "finish_reason"),
)
REGIONS_IN_FLIGHT = Metric("ureca_regions_in_flight", "gauge", "Regions in progress in a replica.", ("model",))
FIRST_TOKEN_SECONDS = Metric(
    "ureca_first_token_seconds",
    "histogram",
    "From an image's arrival in a replica to the first piece of a caption.",
    ("model",),
    _SECONDS,
)
REGION_SECONDS = Metric(
    "ureca_region_seconds",
    "histogram",
    "From an image's arrival in a replica to the caption of each of its regions.",
    ("model",),
    _SECONDS,
)
MASK_ENCODE_SECONDS = Metric(
    "ureca_mask_encode_seconds",
    "histogram",
    "Duration of the mask encoder, for all regions of an image.",
    ("model",),
    _SHORT_SECONDS,
)
PROMPT_TOKENS = Metric("ureca_prompt_tokens", "counter", "Prompt tokens: images, masks, queries.", ("model",))
CACHED_TOKENS = Metric("ureca_cached_tokens", "counter", "Prompt tokens found in the prefix cache.", ("model",))
CAPTION_TOKENS = Metric("ureca_caption_tokens", "counter", "Tokens of captions.", ("model",))

METRICS = (
    REQUESTS,
    REQUEST_SECONDS,
    REJECTED,
    REGIONS,
    REGIONS_IN_FLIGHT,
    FIRST_TOKEN_SECONDS,
    REGION_SECONDS,
    MASK_ENCODE_SECONDS,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    CAPTION_TOKENS,
)


class Recorder(Protocol):
    def record(self, metric: Metric, value: float, **tags: str) -> None:
        """Add to a counter, set a gauge, or observe a histogram value. Thread-safe."""


class NoRecorder:
    """Recorder that drops everything."""

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        pass


class EngineMeter:
    """Measures the calls to one engine."""

    def __init__(self, recorder: Recorder, model: str) -> None:
        self._recorder, self._model = recorder, model
        self._in_flight = 0

    async def keep_reporting(self) -> None:
        """Report the gauge forever: Ray drops a gauge that is not set for 20 s, so a long caption would look like
        none."""
        while True:
            self._enter(0)
            await asyncio.sleep(REPORT_SECONDS)

    def masks_encoded(self, seconds: float) -> None:
        self._record(MASK_ENCODE_SECONDS, seconds)

    async def measure(
        self, events: AsyncGenerator[tuple[int, Event]], num_regions: int
    ) -> AsyncGenerator[tuple[int, Event]]:
        """Forward the events of `CaptionEngine.stream` for `num_regions` regions, and record them."""
        began = time.perf_counter()
        left, first = num_regions, True
        self._enter(num_regions)
        try:
            async with aclosing(events):
                async for index, event in events:
                    if first and not isinstance(event, RegionFault):
                        self._record(FIRST_TOKEN_SECONDS, time.perf_counter() - began)
                        first = False
                    if not isinstance(event, str):
                        left -= 1
                        self._enter(-1)
                    if isinstance(event, Caption):
                        self._finished(event, time.perf_counter() - began)
                    yield index, event
        finally:
            self._enter(-left)
            if left:
                self._record(REGIONS, left, finish_reason="abandoned")

    def _finished(self, caption: Caption, seconds: float) -> None:
        self._record(REGIONS, 1, finish_reason=caption.finish_reason)
        self._record(REGION_SECONDS, seconds)
        self._record(PROMPT_TOKENS, caption.prompt_tokens)
        self._record(CACHED_TOKENS, caption.cached_tokens)
        self._record(CAPTION_TOKENS, caption.completion_tokens)

    def _enter(self, num_regions: int) -> None:
        self._in_flight += num_regions
        self._record(REGIONS_IN_FLIGHT, self._in_flight)

    def _record(self, metric: Metric, value: float, **tags: str) -> None:
        self._recorder.record(metric, value, model=self._model, **tags)


class RayRecorder:
    """Recorder on Ray. Create it inside a replica, so that Serve adds the tags application, deployment and replica."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {metric.name: _made(metric) for metric in METRICS}

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        made = self._made[metric.name]
        if metric.kind == "counter":
            if value:  # Ray refuses to add 0
                made.inc(value, tags)
        elif metric.kind == "gauge":
            made.set(value, tags)
        else:
            made.observe(value, tags)


def _made(metric: Metric) -> Any:
    from ray.serve import metrics as serve_metrics  # the API imports this module without Ray

    tags: Any = metric.tags  # Ray's annotation says one tag
    if metric.kind == "counter":
        return serve_metrics.Counter(metric.name, metric.help, tags)
    if metric.kind == "gauge":
        return serve_metrics.Gauge(metric.name, metric.help, tags)
    return serve_metrics.Histogram(metric.name, metric.help, list(metric.boundaries), tags)
