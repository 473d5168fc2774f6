"""The HTTP API: a FastAPI application in front of anything that captions (`CaptionBackend`).

POST /v1/captions   captions for regions of one image; a faulty region gets its error in its own slot
GET  /healthz       this process answers
GET  /readyz        the engine behind it answers; 503 until it does
GET  /              what is where
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ureca.engine.caption import Caption
from ureca.errors import InputError, MaskError
from ureca.regions.rle import Rle
from ureca.serving.body_limit import BodyLimit
from ureca.serving.errors import RequestError, error_body
from ureca.serving.inputs import decode_request_image, region_to_rle
from ureca.serving.schema import CaptionRequest, CaptionResponse, RegionAnswer, SlotError, Usage
from ureca.serving.settings import Limits

__all__ = ["CaptionBackend", "CaptionCall", "OverloadedError", "UnavailableError", "create_app"]

logger = logging.getLogger(__name__)


class OverloadedError(Exception):
    """The backend's queue is full."""


class UnavailableError(Exception):
    """The backend is starting, or has died and is being replaced."""


@dataclass(frozen=True)
class CaptionCall:
    """What the API asks of a backend: one image, its regions that are in order, and how to caption them."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    digest: str
    """SHA-256 of the image file: calls with one digest find a warm cache in one replica."""
    segmentations: tuple[Rle, ...]
    style: str
    max_tokens: int
    temperature: float


class CaptionBackend(Protocol):
    """Raises OverloadedError, UnavailableError, or InputError; cancelling a call ends its work."""

    async def caption(self, call: CaptionCall) -> list[Caption]: ...

    def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, str | Caption]]: ...

    async def check_health(self) -> None: ...


def create_app(backend: CaptionBackend, *, model_name: str, limits: Limits) -> FastAPI:
    """The application. Every error it answers with has the form of `error_body`."""
    app = FastAPI(title="URECA captioner", summary="A caption for every region of an image that fits it alone.")
    app.add_middleware(BodyLimit, max_bytes=limits.max_request_bytes)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(InputError, _on_input_error)
    app.add_exception_handler(OverloadedError, _on_overloaded)
    app.add_exception_handler(UnavailableError, _on_unavailable)
    app.add_exception_handler(Exception, _on_fault)

    @app.get("/", include_in_schema=False)
    async def index() -> dict[str, Any]:
        links = {"docs": "/docs", "captions": "/v1/captions", "health": "/healthz", "ready": "/readyz"}
        return {"service": "ureca captioner", "model": model_name, "links": links}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        await backend.check_health()
        return {"status": "ready"}

    @app.post("/v1/captions", response_model=CaptionResponse, response_model_exclude_none=True)
    async def captions(request: CaptionRequest) -> Any:
        call, answers, slots = await asyncio.to_thread(_read_request, request, limits)
        if request.stream:
            events = _events(backend, call, answers, slots, model_name)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        usage = Usage()
        for slot, caption in zip(slots, await backend.caption(call) if slots else (), strict=True):
            answers[slot] = RegionAnswer(
                id=answers[slot].id, caption=caption.text, finish_reason=_finish_reason(caption)
            )
            usage = _add(usage, caption)
        return CaptionResponse(model=model_name, captions=answers, usage=usage)

    return app


def _read_request(request: CaptionRequest, limits: Limits) -> tuple[CaptionCall, list[RegionAnswer], list[int]]:
    """The call for the regions in order, an answer for each region (so far: its id, or its error), and which
    answers wait for a caption, in the order of the call."""
    if len(request.regions) > limits.max_regions:
        raise RequestError(
            f"regions: {len(request.regions)} of them, this service takes {limits.max_regions} at a time. "
            "Send them in several requests; the image's cache is shared.",
            status=413,
            kind="too_large",
            param="regions",
        )
    max_tokens = request.max_tokens or min(96, limits.max_tokens)
    if max_tokens > limits.max_tokens:
        raise RequestError(
            f"max_tokens: {max_tokens}, this service gives at most {limits.max_tokens}.", param="max_tokens"
        )
    ids = [str(index if region.id is None else region.id) for index, region in enumerate(request.regions)]
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise RequestError(f"regions: id {twice!r} occurs twice. Give each an id of its own.", param="regions")
    data, image = decode_request_image(request.image, limits)

    answers, slots, segmentations = [], [], []
    for slot, (region_id, region) in enumerate(zip(ids, request.regions, strict=True)):
        answer = RegionAnswer(id=region_id)
        try:
            if region.model_extra:
                raise MaskError(f"unknown key {next(iter(region.model_extra))!r} in the region.")
            segmentations.append(region_to_rle(region.model_dump(), (image.shape[0], image.shape[1])))
            slots.append(slot)
        except MaskError as error:
            answer.error = SlotError(type="invalid_region", message=str(error))
        answers.append(answer)
    call = CaptionCall(
        image=image,
        digest=hashlib.sha256(data).hexdigest(),
        segmentations=tuple(segmentations),
        style=request.style,
        max_tokens=max_tokens,
        temperature=request.temperature,
    )
    return call, answers, slots


async def _events(
    backend: CaptionBackend,
    call: CaptionCall,
    answers: Sequence[RegionAnswer],
    slots: Sequence[int],
    model_name: str,
) -> AsyncIterator[str]:
    """Server-sent events, each one JSON: {"id", "delta"}, {"id", "finish_reason", "caption"} once a region,
    {"id", "error"}, last {"model", "usage"}, then the line [DONE]."""
    for answer in answers:
        if answer.error is not None:
            yield _event({"id": answer.id, "error": answer.error.model_dump()})
    usage = Usage()
    try:
        if slots:
            async with aclosing(backend.stream(call)) as stream:
                async for index, event in stream:
                    region_id = answers[slots[index]].id
                    if isinstance(event, str):
                        yield _event({"id": region_id, "delta": event})
                    else:
                        usage = _add(usage, event)
                        finish = {"finish_reason": _finish_reason(event), "caption": event.text}
                        yield _event({"id": region_id, **finish})
    except Exception as error:  # the status line is out: what went wrong can only be told as an event
        status, body = _describe(error)
        if status == 500:
            logger.exception("captioning failed")
        yield _event(body)
    else:
        yield _event({"model": model_name, "usage": usage.model_dump()})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _add(usage: Usage, caption: Caption) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens + caption.prompt_tokens,
        completion_tokens=usage.completion_tokens + caption.completion_tokens,
        cached_tokens=usage.cached_tokens + caption.cached_tokens,
    )


def _finish_reason(caption: Caption) -> Any:
    return "length" if caption.finish_reason == "length" else "stop"


def _describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    if isinstance(error, RequestError):
        return error.status, error_body(error.kind, str(error), error.param)
    if isinstance(error, InputError):
        return 400, error_body("invalid_request", str(error))
    if isinstance(error, OverloadedError):
        return 503, error_body("overloaded", "too many requests are waiting; try again in a few seconds")
    if isinstance(error, UnavailableError):
        return 503, error_body("unavailable", f"the captioner does not answer yet: {error}")
    return 500, error_body("internal_error", "captioning failed; the service's log says why")


async def _on_request_error(_: Request, error: Exception) -> Response:
    status, body = _describe(error)
    return JSONResponse(body, status)


_on_input_error = _on_request_error


async def _on_overloaded(_: Request, error: Exception) -> Response:
    status, body = _describe(error)
    return JSONResponse(body, status, headers={"Retry-After": "5"})


_on_unavailable = _on_overloaded


async def _on_fault(_: Request, error: Exception) -> Response:
    logger.error("captioning failed", exc_info=error)
    return JSONResponse(_describe(error)[1], 500)


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"] if part != "body")
    where = f"{path}: " if path and first["type"] != "json_invalid" else ""
    message = f"{where}{first['msg']}. GET /docs describes the request."
    return JSONResponse(error_body("invalid_request", message, path or None), 400)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}. GET / says what is where."
    body = error_body("not_found" if error.status_code == 404 else "invalid_request", message)
    return JSONResponse(body, error.status_code, headers=error.headers)
