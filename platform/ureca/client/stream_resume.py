"""A streamed request that broke, asked again for what is left of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ureca.serving.api.schema import WHOLE_IMAGE

T = TypeVar("T")


class StreamDivergedError(Exception):
    """A region's caption does not begin as it did before the break."""


class StreamedRegions:
    """What has been told of each region of a request, over all the streams that it takes."""

    def __init__(self, regions: Sequence[Mapping[str, Any]], *, whole_image: bool) -> None:
        """`regions`: as in the request. `whole_image`: a caption of the whole image was asked for too."""
        # Numbered as the service does it, which would number anew what is left of them.
        self._regions = [
            {**region, "id": str(number) if region.get("id") is None else region["id"]}
            for number, region in enumerate(regions)
        ]
        self._whole_image = whole_image
        self._whole: set[str] = set()
        self._told: dict[str, str] = {}
        """Text of those that have begun and are not whole yet."""
        self._now: dict[str, str] = {}
        """The same, of the stream that runs."""

    def fields(self) -> dict[str, Any]:
        """Of a request for what is not whole yet. A stream begins with this."""
        self._now = {}
        left = [region for region in self._regions if str(region["id"]) not in self._whole]
        # No request is about the whole image alone.
        return {
            "regions": left or self._regions[:1],
            "image_caption": self._whole_image and WHOLE_IMAGE not in self._whole,
        }

    @property
    def has_partial_captions(self) -> bool:
        """Whether a region's caption has begun and is not whole yet."""
        return bool(self._told)

    def accept(self, region_id: str, event: str | T) -> Iterator[tuple[str, str | T]]:
        """The next piece of a region's caption, without what was told before the break, or what ends the region.

        Raises:
            StreamDivergedError: it does not begin as before.
        """
        if region_id in self._whole:
            return
        told, now = self._told.get(region_id, ""), self._now.get(region_id, "")
        if isinstance(event, str):
            now += event
            self._now[region_id] = now
            if not now.startswith(told[: len(now)]):
                raise StreamDivergedError
            if len(now) > len(told):
                self._told[region_id] = now
                yield region_id, now[len(told) :]
        else:
            if len(now) < len(told):
                raise StreamDivergedError
            self._told.pop(region_id, None)
            self._whole.add(region_id)
            yield region_id, event
