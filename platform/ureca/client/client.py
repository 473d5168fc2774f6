"""HTTP client of the caption service.

client = Client("http://localhost:8000")
for answer in client.caption("photo.jpg", [{"id": "7", "box": [40, 30, 200, 120]}]):
    print(answer.id, answer.caption or answer.error)
"""

import base64
import contextlib
import io
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from PIL import Image

from ureca.client.stream_resume import StreamDivergedError, StreamedRegions
from ureca.errors import ImageError, UrecaError

T = TypeVar("T")

ImageLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


_LONGEST_WAIT_SECONDS = 30.0
_EXIF_ORIENTATION = 0x0112


class ServiceError(UrecaError):
    """The service refused the request or can't be reached; holds the service's message."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """Store message and HTTP status; None if there was no answer, or it was truncated."""
        super().__init__(message)
        self.status = status


class _RetryError(Exception):
    """A failure that may succeed when repeated."""

    def __init__(self, error: ServiceError, after_seconds: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.after_seconds = error, after_seconds

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait: the service's Retry-After, or growing delays with jitter."""
        seconds = max(self.after_seconds, 0.5 * 2**attempt)
        return min(_LONGEST_WAIT_SECONDS, seconds) * random.uniform(0.75, 1.25)


@dataclass(frozen=True)
class RegionCaption:
    """Result for one region: a caption, or an error."""

    id: str
    caption: str | None
    error: str | None
    finish_reason: str | None
    """`stop` (the model ended it) or `length` (truncated at `max_tokens`)."""


class Captions(list[RegionCaption]):
    """Results of one request, in region order."""

    def __init__(self, answers: Iterable[RegionCaption], *, model: str, usage: Mapping[str, int]) -> None:
        """Store results and usage: `prompt_tokens`, `completion_tokens`, and `cached_tokens` (prompt tokens from the
        cache)."""
        super().__init__(answers)
        self.model, self.usage = model, usage


class Client:
    """Client of one service. Use it as a context manager, or call `close()`."""

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        token: str | None = None,
        timeout_seconds: float = 300,
        retries: int = 8,
    ) -> None:
        """Create a client.

        Args:
            token: access token, if the service requires one.
            retries: retries when the service is full, has no engine, or the connection breaks. Captioning has no side
                effects, so repeating a request is safe. Eight retries take about 90 seconds, enough to replace a lost
                engine.
        """
        self._url = url
        self._retries = retries
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, timeout=timeout_seconds, headers=headers)

    def caption(
        self,
        image: ImageLike,
        regions: Sequence[Mapping[str, Any]],
        *,
        style: str = "unique",
        max_tokens: int | None = None,
        temperature: float = 0.0,
        **options: Any,
    ) -> Captions:
        """Caption regions of an image.

        Args:
            image: path of a file, content of a file, uint8 (H, W, 3) RGB, or a PIL image.
            regions: each {"id", and one of "rle", "polygon", "box" [x, y, width, height], "mask_png", "points"},
                optionally with "style" or "question"; or a COCO RLE. Without an id the region's index is its id.
            style: "brief", "detailed" or "unique".
            max_tokens: maximum tokens per caption; None: the service's default.
            temperature: 0 decodes greedily.
            options: other request fields, see /docs (`top_p`, `model`, …).

        Raises:
            ServiceError: with the service's message.
            ImageError: the file does not exist.
        """
        body = _body(image, regions, style, max_tokens, temperature, stream=False) | options
        answer = self._again(lambda: self._request("POST", "/v1/captions", body))
        return Captions(map(_answer, answer["captions"]), model=answer["model"], usage=answer["usage"])

    def tree(
        self,
        image: ImageLike,
        regions: Sequence[Mapping[str, Any]] | None = None,
        *,
        style: str = "unique",
        captions: bool = True,
        **options: Any,
    ) -> dict[str, Any]:
        """Return regions as a tree, parents first, like `POST /v1/trees`; without `regions`, those the service finds.

        Raises like `caption`.
        """
        body = {"image": data_url(image), "style": style, "captions": captions, **options}
        if regions is not None:
            body["regions"] = _regions(regions)
        return self._again(lambda: self._request("POST", "/v1/trees", body))

    def regions(self, image: ImageLike) -> list[dict[str, Any]]:
        """Return the regions that the service finds in an image, parents first, like `POST /v1/regions`.

        Each has "id", "rle", "bbox", "area", "parent" and "depth", and no caption. Raises like `caption`.
        """
        body = {"image": data_url(image)}
        return list(self._again(lambda: self._request("POST", "/v1/regions", body))["regions"])

    def stream(
        self,
        image: ImageLike,
        regions: Sequence[Mapping[str, Any]],
        *,
        style: str = "unique",
        max_tokens: int | None = None,
        temperature: float = 0.0,
        **options: Any,
    ) -> Iterator[tuple[str, str | RegionCaption]]:
        """Stream captions: yields (id, next piece of text), and finally (id, `RegionCaption`) once per region.

        Pieces of several regions are interleaved. Closing the iterator cancels the captioning. After a broken stream
        the client requests the unfinished regions again and resumes mid-caption. If the repeated caption starts
        differently, with a temperature or with other rounding on another kind of machine, that is a ServiceError.
        """
        streamed = StreamedRegions(_regions(regions), whole_image=bool(options.get("image_caption")))
        body = _body(image, (), style, max_tokens, temperature, stream=True) | options
        for attempt in itertools.count():
            response, events = self._again(lambda: self._open_stream(body | streamed.fields()))
            try:
                for event in events:
                    for region_id, what in _read_event(event):
                        yield from streamed.accept(region_id, what)
                return
            except _RetryError as broken:
                if attempt == self._retries or (temperature > 0 and streamed.has_partial_captions):
                    raise broken.error from broken
                pause = broken.pause(attempt)
            except StreamDivergedError as error:
                raise ServiceError(
                    f"{self._url}: the stream broke, and a repeated caption starts differently."
                ) from error
            finally:
                response.close()
            time.sleep(pause)

    def models(self) -> list[str]:
        """Return the names of the service's models, the default model first. Raises ServiceError."""
        answer = self._again(lambda: self._request("GET", "/v1/models"))
        return [each["id"] for each in answer["data"]]

    def is_ready(self) -> bool:
        """Return whether the service answers and its engine is up."""
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

    def _again(self, send: Callable[[], T]) -> T:
        """Call `send`, and repeat it after a pause while it raises `_RetryError`."""
        for attempt in range(self._retries + 1):
            try:
                return send()
            except _RetryError as retry:
                if attempt == self._retries:
                    raise retry.error from retry
                time.sleep(retry.pause(attempt))
        raise AssertionError("unreachable")

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._stream_breaks():
            response = self._http.request(method, path, json=body)
        _raise_for_status(response)
        answer: dict[str, Any] = response.json()
        return answer

    def _open_stream(self, body: Mapping[str, Any]) -> tuple[httpx.Response, Iterator[dict[str, Any]]]:
        """Open a stream; return the response and its events, the first one already read."""
        request = self._http.build_request("POST", "/v1/captions", json=body)
        with self._stream_breaks():
            response = self._http.send(request, stream=True)
        try:
            if response.is_error:
                with self._stream_breaks():
                    response.read()
            _raise_for_status(response)
            events = self._events(response)
            first = list(itertools.islice(events, 1))
        except BaseException:
            response.close()
            raise
        return response, itertools.chain(first, events)

    def _events(self, response: httpx.Response) -> Iterator[dict[str, Any]]:
        lines = response.iter_lines()
        while True:
            with self._stream_breaks():
                line = next(lines, None)
            if line is None:
                raise _RetryError(ServiceError(f"{self._url}: the stream broke off before its end."))
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return
            if data:
                yield json.loads(data)

    @contextlib.contextmanager
    def _stream_breaks(self) -> Iterator[None]:
        try:
            yield
        except httpx.RequestError as error:
            unreachable = ServiceError(
                f"{self._url}: {type(error).__name__}: {error}. Is the service running? `make serve` starts one."
            )
            # A time-out has already cost the caller its time, and a wrong URL stays wrong.
            final = isinstance(error, httpx.TimeoutException | httpx.UnsupportedProtocol)
            raise (unreachable if final else _RetryError(unreachable)) from error


def _raise_for_status(response: httpx.Response) -> None:
    if not response.is_error:
        return
    error = ServiceError(_message(response), response.status_code)
    # A 500 in the service's format would recur. Any other format is from a proxy that lost the service.
    lost = response.status_code == 500 and not response.headers.get("content-type", "").startswith("application/json")
    # A request that took too long would take too long again.
    if lost or (response.status_code in (429, 502, 503, 504) and _kind(response) != "timeout"):
        after = response.headers.get("retry-after", "")
        raise _RetryError(error, float(after) if after.isdigit() else 0.0)
    raise error


def _regions(regions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"rle": dict(each)} if "counts" in each else dict(each) for each in regions]


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
        "regions": _regions(regions),
        "style": style,
        "temperature": temperature,
        "stream": stream,
    }
    return body if max_tokens is None else {**body, "max_tokens": max_tokens}


def as_read(data: bytes, pixels: np.ndarray) -> bytes | np.ndarray:
    """Return what to send for an image file decoded locally to uint8 (H, W, 3).

    The file itself if the service decodes it identically, otherwise the pixels. The service accepts three formats and
    ignores EXIF rotation.
    """
    with Image.open(io.BytesIO(data)) as stored:
        turned = stored.getexif().get(_EXIF_ORIENTATION, 1) != 1
        return pixels if turned or stored.format not in ("JPEG", "PNG", "WEBP") else data


def data_url(image: ImageLike) -> str:
    """Encode an image as a data URL: arrays and PIL images as PNG, files unchanged. Raises ImageError."""
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
            raise ImageError(f"{os.fspath(image)}: {error.strerror}. Name an existing image file.") from error
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
        error = ServiceError(event["error"]["message"])
        raise _RetryError(error) if event["error"].get("type") in ("overloaded", "unavailable") else error


def _kind(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["type"])
    except (ValueError, KeyError, TypeError):
        return ""


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url}: HTTP {response.status_code}: {response.text[:200]}"
