"""Interface between the HTTP API and captioning backends, and their errors."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ureca.engine.results import Caption, Event, RegionFault
from ureca.regions.rle import Rle


class OverloadedError(Exception):
    """The backend's queue is full."""


class UnavailableError(Exception):
    """The backend is starting, or has died and is being replaced."""


@dataclass(frozen=True)
class RegionCall:
    """One region, with its style or question."""

    segmentation: Rle
    style: str
    question: str | None = None
    """Question in place of the style's query."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters of captions."""

    max_tokens: int
    """Maximum tokens per caption."""
    temperature: float = 0.0
    """0 decodes greedily."""
    top_p: float = 1.0
    """Nucleus sampling: probability mass of the likeliest tokens to sample from."""
    logprobs: bool = False
    """Return each token's log-probability."""


@dataclass(frozen=True, kw_only=True)
class CaptionCall:
    """One image, its valid regions, and how to caption them."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    digest: str
    """SHA-256 of the image file: calls with the same digest share a replica's warm cache."""
    regions: tuple[RegionCall, ...]
    sampling: Sampling
    tenant: str = ""
    """Tenant of the request: cached images of one tenant serve no other. Empty without authentication."""


class CaptionBackend(Protocol):
    """Captions regions. Raises OverloadedError, UnavailableError or InputError; canceling a call ends its work."""

    async def caption(self, call: CaptionCall) -> list[Caption | RegionFault]: ...

    def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, Event]]: ...

    async def check_health(self) -> None: ...


Backends = Mapping[str, CaptionBackend]
"""Served models by name; the first one answers requests that name none."""
