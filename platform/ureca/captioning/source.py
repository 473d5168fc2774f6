"""Where captions come from: one interface for an engine in this process and for a running service."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ureca.corpus.read import LoadedImage
from ureca.engine.utilization import Load
from ureca.regions.rle import Rle


@dataclass(frozen=True)
class Captioned:
    """The captions of one image, in the order in which they were asked for."""

    texts: tuple[str, ...] = ()
    cut: tuple[bool, ...] = ()
    """Whether each ended at `max_tokens`."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of `prompt_tokens`: found in the cache, so not computed."""


class CaptionSource(Protocol):
    """Captions regions of many images at once. One per process."""

    load: Load
    """The regions that it works on."""

    @property
    def start_seconds(self) -> float:
        """That its engine took to start; 0 until then."""
        ...

    async def caption(self, image: LoadedImage, asked: Sequence[tuple[Rle, str]], max_tokens: int) -> Captioned:
        """Captions of one image; `asked`: mask and style of each.

        Raises:
            InputError: something is wrong with this image.
            JobStopped: neither this nor any other image can be captioned for now.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and processes."""
        ...
