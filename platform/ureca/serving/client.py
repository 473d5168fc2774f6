"""A small client of the captioner's HTTP API.

client = Client("http://localhost:8000")
for answer in client.caption("photo.jpg", [{"id": "7", "box": [40, 30, 200, 120]}]):
    print(answer.id, answer.caption or answer.error)
"""

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from PIL import Image

from ureca.errors import ImageError, UrecaError

__all__ = ["Client", "RegionCaption", "ServiceError", "data_url"]

ImageLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


class ServiceError(UrecaError):
    """The service refused the request, or can't be reached. Holds the service's own words."""


@dataclass(frozen=True)
class RegionCaption:
    """What became of one region: a caption, or what was wrong with the region."""

    id: str
    caption: str | None
    error: str | None
    finish_reason: str | None
    """`stop` (the model ended it) or `length` (cut at `max_tokens`)."""


class Client:
    """Talks to one service. Use it as a context manager, or `close()` it."""

    def __init__(self, url: str = "http://localhost:8000", *, timeout_seconds: float = 300) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=timeout_seconds)

    def caption(
        self,
        image: ImageLike,
        regions: Sequence[Mapping[str, Any]],
        *,
        style: str = "unique",
        max_tokens: int | None = None,
        temperature: float = 0.0,
    ) -> list[RegionCaption]:
        """Caption regions of an image.

        Args:
            image: a file's path, a file's bytes, uint8 (H, W, 3) RGB, or a PIL image.
            regions: each {"id", and one of "rle", "polygon", "box" [x, y, width, height], "mask_png"}, or a
                COCO RLE alone. Without an id a region's number is its id.
            style: "brief", "detailed" or "unique".
            max_tokens: most tokens of one caption; None leaves it to the service.
            temperature: 0 takes the likeliest token each time.

        Raises:
            ServiceError: with the service's message.
            ImageError: the file is not there.
        """
        body = _body(image, regions, style, max_tokens, temperature, stream=False)
        try:
            response = self._http.post("/v1/captions", json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise ServiceError(_message(response))
        return [_answer(each) for each in response.json()["captions"]]

    def stream(
        self,
        image: ImageLike,
        regions: Sequence[Mapping[str, Any]],
        *,
        style: str = "unique",
        max_tokens: int | None = None,
        temperature: float = 0.0,
    ) -> Iterator[tuple[str, str | RegionCaption]]:
        """The same, piece by piece: (id, next piece of text), and once a region, last, (id, `RegionCaption`).

        Pieces of several regions come in turn. Closing the iterator ends the captioning.
        """
        body = _body(image, regions, style, max_tokens, temperature, stream=True)
        try:
            with self._http.stream("POST", "/v1/captions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise ServiceError(_message(response))
                for line in response.iter_lines():
                    data = line.removeprefix("data: ")
                    if data == "[DONE]":
                        return
                    if data:
                        yield from _read_event(json.loads(data))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def is_ready(self) -> bool:
        """Whether the service answers and its engine is up."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unreachable(self, error: httpx.HTTPError) -> ServiceError:
        return ServiceError(
            f"{self._url}: {type(error).__name__}: {error}. Is the service running? `make serve` starts one."
        )


def _body(
    image: ImageLike,
    regions: Sequence[Mapping[str, Any]],
    style: str,
    max_tokens: int | None,
    temperature: float,
    *,
    stream: bool,
) -> dict[str, Any]:
    body = {
        "image": data_url(image),
        "regions": [{"rle": dict(each)} if "counts" in each else dict(each) for each in regions],
        "style": style,
        "temperature": temperature,
        "stream": stream,
    }
    return body if max_tokens is None else {**body, "max_tokens": max_tokens}


def data_url(image: ImageLike) -> str:
    """An image as the API takes it; an array or a PIL image as PNG, a file as it is. Raises ImageError."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        data = buffer.getvalue()
    elif isinstance(image, bytes):
        data = image
    else:
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise ImageError(f"{os.fspath(image)}: {error.strerror}. Give the path of an image file.") from error
    kind = "png" if data[:4] == b"\x89PNG" else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _answer(record: Mapping[str, Any]) -> RegionCaption:
    error = record.get("error")
    return RegionCaption(
        id=record["id"],
        caption=record.get("caption"),
        error=error["message"] if error else None,
        finish_reason=record.get("finish_reason"),
    )


def _read_event(event: Mapping[str, Any]) -> Iterator[tuple[str, str | RegionCaption]]:
    if "delta" in event:
        yield event["id"], event["delta"]
    elif "id" in event:
        yield event["id"], _answer(event)
    elif "error" in event:
        raise ServiceError(event["error"]["message"])


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url}: HTTP {response.status_code}: {response.text[:200]}"
