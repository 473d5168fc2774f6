"""Caption source: one interface for an engine in this process and for a running service."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ureca.corpus.read import LoadedImage
from ureca.engine.utilization import LoadMeter
from ureca.regions.rle import Rle


@dataclass(frozen=True)
class ImageCaptions:
    """The captions of one image, in request order."""

    texts: tuple[str, ...] = ()
    truncated: tuple[bool, ...] = ()
    """True for each caption truncated at `max_tokens`."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the cache and not computed."""


class CaptionSource(Protocol):
    """Captions regions of many images concurrently. One per process."""

    load: LoadMeter
    """Meter of the regions in progress."""

    @property
    def start_seconds(self) -> float:
        """Seconds that the engine took to start; 0 until then."""
        ...

    async def caption(self, image: LoadedImage, requests: Sequence[tuple[Rle, str]], max_tokens: int) -> ImageCaptions:
        """Caption one image; `requests` holds mask and style of each caption.

        Raises:
            InputError: the image is at fault.
            JobStopped: neither this nor any other image can be captioned for now.
        """
        ...

    async def close(self) -> None:
        """Close connections and end child processes."""
        ...
