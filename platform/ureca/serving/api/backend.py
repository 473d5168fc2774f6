"""What the API asks of whatever captions, and how that may fail; the border between HTTP and the engine."""

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
    """One region, and what is asked about it."""

    segmentation: Rle
    style: str
    question: str | None = None
    """In place of the style's own."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How captions are drawn from the model."""

    max_tokens: int
    """Of one caption."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Share of the probability, the likeliest tokens first, that is drawn from."""
    logprobs: bool = False
    """Whether each token's log-probability is asked for."""


@dataclass(frozen=True, kw_only=True)
class CaptionCall:
    """One image, its regions that are in order, and how to caption them."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    digest: str
    """SHA-256 of the image file: calls with one digest find a warm cache in one replica."""
    regions: tuple[RegionCall, ...]
    sampling: Sampling
    tenant: str = ""
    """Who asks: what the engine keeps of one tenant's images serves no other. Empty where nobody is told apart."""


class CaptionBackend(Protocol):
    """Raises OverloadedError, UnavailableError, or InputError; cancelling a call ends its work."""

    async def caption(self, call: CaptionCall) -> list[Caption | RegionFault]: ...

    def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, Event]]: ...

    async def check_health(self) -> None: ...


Backends = Mapping[str, CaptionBackend]
"""The models that are served, by name; the first is that of requests which name none."""
