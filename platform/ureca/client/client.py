"""A small client of the captioner's HTTP API.

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
    """The service refused the request, or can't be reached. Holds the service's own words."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """`status`: of its answer; None where there was none, or it broke off."""
        super().__init__(message)
        self.status = status


class _RetryError(Exception):
    """The service did not do it, and says, or its end says, that it may the next time."""

    def __init__(self, error: ServiceError, after_seconds: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.after_seconds = error, after_seconds

    def pause(self, attempt: int) -> float:
        """Seconds: as the service says, longer each time, and not the same for all clients at once."""
        seconds = max(self.after_seconds, 0.5 * 2**attempt)
        return min(_LONGEST_WAIT_SECONDS, seconds) * random.uniform(0.75, 1.25)


@dataclass(frozen=True)
class RegionCaption:
    """What became of one region: a caption, or what was wrong with the region."""

    id: str
    caption: str | None
    error: str | None
    finish_reason: str | None
    """`stop` (the model ended it) or `length` (cut at `max_tokens`)."""


class Captions(list[RegionCaption]):
    """The answers to one request, in the order of its regions."""

    def __init__(self, answers: Iterable[RegionCaption], *, model: str, usage: Mapping[str, int]) -> None:
        """`usage`: `prompt_tokens`, `completion_tokens`, and of the former `cached_tokens`, found in the cache."""
        super().__init__(answers)
        self.model, self.usage = model, usage


class Client:
    """Talks to one service. Use it as a context manager, or `close()` it."""

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        token: str | None = None,
        timeout_seconds: float = 300,
        retries: int = 8,
    ) -> None:
        """`token`: where the service asks for one. `retries`: how often a request is sent again that the service had no
        place or no engine for, or whose connection broke; captioning changes nothing, so sending it twice does no harm.
        Eight take about a minute and a half, in which a lost engine is replaced.
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
            image: a file's path, a file's bytes, uint8 (H, W, 3) RGB, or a PIL image.
            regions: each {"id", and one of "rle", "polygon", "box" [x, y, width, height], "mask_png", "points"}, and
                its own "style" or "question" if it has one; or a COCO RLE alone. Without an id a region's number is
                its id.
            style: "brief", "detailed" or "unique".
            max_tokens: most tokens of one caption; None leaves it to the service.
            temperature: 0 takes the likeliest token each time.
            options: other fields of the request, as /docs describes them (`top_p`, `model`, …).

        Raises:
            ServiceError: with the service's message.
            ImageError: the file is not there.
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
        """The regions as a tree, parents before children, as `POST /v1/trees` answers; without regions, of those that
        the service finds in the image. Raises as `caption`."""
        body = {"image": data_url(image), "style": style, "captions": captions, **options}
        if regions is not None:
            body["regions"] = _regions(regions)
        return self._again(lambda: self._request("POST", "/v1/trees", body))

    def regions(self, image: ImageLike) -> list[dict[str, Any]]:
        """The regions that the service finds in an image, parents before children, as `POST /v1/regions` answers: each
        with its "id", "rle", "bbox", "area", "parent" and "depth", and without a caption. Raises as `caption`."""
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
        """The same, piece by piece: (id, next piece of text), and once a region, last, (id, `RegionCaption`).

        Pieces of several regions come in turn. Closing the iterator ends the captioning. A stream that breaks is asked
        again for the regions that it had not told whole, and goes on where it was. That can't be done, and is a
        ServiceError, where a caption had begun that would not begin so again: with a temperature, or (on two kinds of
        machines) with other rounding.
        """
        told = StreamedRegions(_regions(regions), whole_image=bool(options.get("image_caption")))
        body = _body(image, (), style, max_tokens, temperature, stream=True) | options
        for attempt in itertools.count():
            response, events = self._again(lambda: self._open_stream(body | told.fields()))
            try:
                for event in events:
                    for region_id, what in _read_event(event):
                        yield from told.accept(region_id, what)
                return
            except _RetryError as broken:
                if attempt == self._retries or (temperature > 0 and told.has_partial_captions):
                    raise broken.error from broken
                pause = broken.pause(attempt)
            except StreamDivergedError as error:
                raise ServiceError(
                    f"{self._url}: the stream broke, and a caption that had begun now begins in another way."
                ) from error
            finally:
                response.close()
            time.sleep(pause)

    def models(self) -> list[str]:
        """The names of the service's models, the one that answers by default first. Raises ServiceError."""
        answer = self._again(lambda: self._request("GET", "/v1/models"))
        return [each["id"] for each in answer["data"]]

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

    def _again(self, send: Callable[[], T]) -> T:
        """What `send` returns, sent again after a pause where it asks for that."""
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
        """The response, with its first event read."""
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
            told = ServiceError(
                f"{self._url}: {type(error).__name__}: {error}. Is the service running? `make serve` starts one."
            )
            # A time-out has cost the caller its time already, and a wrong URL won't become a right one.
            final = isinstance(error, httpx.TimeoutException | httpx.UnsupportedProtocol)
            raise (told if final else _RetryError(told)) from error


def _raise_for_status(response: httpx.Response) -> None:
    if not response.is_error:
        return
    error = ServiceError(_message(response), response.status_code)
    # The service's own 500 would come again; without its form it is a proxy's, whose service was lost on the way.
    lost = response.status_code == 500 and not response.headers.get("content-type", "").startswith("application/json")
    # What took too long would take as long again.
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
    """What to send of an image file whose pixels, as they were read here, are uint8 (H, W, 3): the file, if the service
    will see the same in it, else the pixels. The service knows three kinds of files, and turns none as EXIF says."""
    with Image.open(io.BytesIO(data)) as stored:
        turned = stored.getexif().get(_EXIF_ORIENTATION, 1) != 1
        return pixels if turned or stored.format not in ("JPEG", "PNG", "WEBP") else data


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
