"""Resume of an interrupted caption stream: request the unfinished regions again, continue mid-caption."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

WHOLE_IMAGE = "image"
"""Region id under which the service captions the whole image (`ureca.serving.api.schema.WHOLE_IMAGE`)."""

T = TypeVar("T")


class StreamDivergedError(Exception):
    """A region's caption starts differently than before the interruption."""


class StreamedRegions:
    """Captions reported so far of a request's regions, over all streams that the request takes."""

    def __init__(self, regions: Sequence[Mapping[str, Any]], *, whole_image: bool) -> None:
        """Take the request's regions; `whole_image`: the request also asks for a caption of the whole image."""
        # Number regions like the service, which would otherwise renumber the remaining ones.
        self._regions = [
            {**region, "id": str(number) if region.get("id") is None else region["id"]}
            for number, region in enumerate(regions)
        ]
        self._whole_image = whole_image
        self._finished: set[str] = set()
        self._reported: dict[str, str] = {}
        """Text reported of unfinished captions."""
        self._received: dict[str, str] = {}
        """Text received in the current stream."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of a request for the unfinished regions. Every stream starts with this call."""
        self._received = {}
        left = [region for region in self._regions if str(region["id"]) not in self._finished]
        # A request needs at least one region, even for the whole image only.
        return {
            "regions": left or self._regions[:1],
            "image_caption": self._whole_image and WHOLE_IMAGE not in self._finished,
        }

    @property
    def has_partial_captions(self) -> bool:
        """True while a region's caption has started and is unfinished."""
        return bool(self._reported)

    def accept(self, region_id: str, event: str | T) -> Iterator[tuple[str, str | T]]:
        """Yield the new part of a caption piece, skipping text reported before; yield a final event unchanged.

        Raises:
            StreamDivergedError: the caption starts differently than before the interruption.
        """
        if region_id in self._finished:
            return
        reported, received = self._reported.get(region_id, ""), self._received.get(region_id, "")
        if isinstance(event, str):
            received += event
            self._received[region_id] = received
            if not received.startswith(reported[: len(received)]):
                raise StreamDivergedError
            if len(received) > len(reported):
                self._reported[region_id] = received
                yield region_id, received[len(reported) :]
        else:
            if len(received) < len(reported):
                raise StreamDivergedError
            self._reported.pop(region_id, None)
            self._finished.add(region_id)
            yield region_id, event
