"""The OpenAI-compatible API: POST /v1/chat/completions and GET /v1/models.

One user message holds one image, any number of regions, and optionally a question:

    {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,…"}}
    {"type": "mask", "rle": … }                   or polygon, box, mask_png, points, as in POST /v1/captions
    {"type": "text", "text": "What is it made from?"}

Each region is one choice of the answer, in order; without a region the whole image is captioned. Without a text the
extra field `style` selects the query. An image whose alpha channel marks the region (one RGBA PNG) is one image with
one region, the input of NVIDIA's Describe Anything server; that server's path without /v1 and its model name are
accepted. Responses follow the OpenAI format: caller errors are 4xx, deltas are strings, usage counts are included.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ureca.engine.results import Event
from ureca.errors import MaskError
from ureca.serving.api.backend import Backends, RegionCall
from ureca.serving.api.captions import (
    choose_model,
    event_stream,
    failure_event,
    fill,
    peek_first_event,
    server_sent,
    time_limit,
    with_timeout,
)
from ureca.serving.api.decode import alpha_mask
from ureca.serving.api.errors import RequestError
from ureca.serving.api.request import Answers, ImageReader, ReadImage, read_regions, read_sampling
from ureca.serving.api.schema import (
    STREAM_RESPONSES,
    RegionAnswer,
    RegionRequest,
    SamplingOptions,
    Style,
    Text,
    TokenLogprob,
    Usage,
    check_text,
)
from ureca.serving.middleware.auth import tenant_of
from ureca.serving.settings import Limits

DAM_MODEL = "describe_anything_model"
"""Model name of NVIDIA's Describe Anything server."""

PARTS = ("text", "image_url", "mask")


class ChatMessage(BaseModel):
    role: Text
    content: str | list[dict[str, Any]]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """OpenAI's request, as far as a region captioner can answer it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "nano_captioner",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,…"}},
                                {"type": "mask", "box": [40, 30, 200, 120]},
                            ],
                        }
                    ],
                }
            ]
        },
    )

    model: Text | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    style: Style = Field("unique", description="Query style if the message holds no text.")
    max_tokens: int | None = Field(None, gt=0)
    max_completion_tokens: int | None = Field(None, gt=0)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    logprobs: bool = False
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    def sampling(self) -> SamplingOptions:
        return SamplingOptions(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=self.logprobs,
        )


def chat_routes(backends: Backends, *, limits: Limits, read_image: ImageReader) -> APIRouter:
    """Create the routes in front of the models."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        cards = [{"id": name, "object": "model", "created": started, "owned_by": "ureca"} for name in backends]
        return {"object": "list", "data": cards}

    @router.post("/chat/completions", include_in_schema=False)
    @router.post("/v1/chat/completions", responses=STREAM_RESPONSES)
    async def completions(request: ChatRequest, http: Request) -> Any:
        """Caption regions, or answer about them, in the OpenAI format: one choice per region."""
        asked = None if request.model == DAM_MODEL else request.model
        model, backend = choose_model(asked, backends)
        sampling = read_sampling(request.sampling(), limits)
        url, regions, text = _read_message(request.messages, limits)
        image = await with_timeout(limits, read_image(url))
        reading = asyncio.to_thread(_regions, image, regions, request.style, text, limits)
        answers = await with_timeout(limits, reading)
        call = answers.call(image, sampling, tenant_of(http.scope))
        head = _Head(model)
        if request.stream:
            with_usage = bool(request.stream_options and request.stream_options.include_usage)
            events = _events(
                await peek_first_event(backend, call, limits, http), answers, head, limits, with_usage=with_usage
            )
            return event_stream(events)
        await fill(backend, call, answers, limits)
        for answer in answers.answers:
            _check(answer)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.caption},
                "finish_reason": answer.finish_reason,
                "logprobs": _logprobs(answer.logprobs),
            }
            for index, answer in enumerate(answers.answers)
        ]
        return {**head.of("chat.completion"), "choices": choices, "usage": _usage(answers.usage)}

    return router


def _read_message(messages: Sequence[ChatMessage], limits: Limits) -> tuple[str, list[RegionRequest], str | None]:
    """Return the image URL, the regions, and the question, if there is one."""
    if len(messages) != 1 or messages[0].role != "user":
        roles = ", ".join(message.role for message in messages)
        raise _bad(f"messages: {roles}. Send one message, from the user.")
    [message] = messages
    parts = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
    urls: list[str] = []
    regions: list[RegionRequest] = []
    texts: list[str] = []
    for part in parts:
        kind = part.get("type")
        if kind == "text":
            texts.append(str(part.get("text", "")))
        elif kind == "image_url":
            given = part.get("image_url")
            url = given.get("url") if isinstance(given, dict) else given
            if not isinstance(url, str):
                raise _bad('messages: an image part must be {"type": "image_url", "image_url": {"url": …}}.')
            urls.append(url)
        elif kind == "mask":
            keys = {name: value for name, value in part.items() if name != "type"}
            keys.setdefault("id", str(len(regions)))
            try:
                regions.append(RegionRequest(**keys))
            except ValidationError as error:
                raise _bad(f"messages: mask {len(regions)}: {error.errors()[0]['msg']}.") from error
        else:
            raise _bad(f"messages: a part of type {str(kind)[:40]!r} is not supported. Types: {', '.join(PARTS)}.")
    if len(urls) != 1:
        raise _bad(f"messages: {len(urls)} images. A request takes one.")
    # Describe Anything's clients mark the image's position in the text.
    text = " ".join(" ".join(texts).replace("<image>", " ").split())
    try:
        check_text(text)
    except ValueError as error:
        raise _bad(f"messages: the text {error}.") from error
    if len(text) > limits.max_question_chars:
        raise _bad(f"messages: a text of {len(text)} characters; the limit is {limits.max_question_chars}.")
    return urls[0], regions, text or None


def _regions(
    image: ReadImage, regions: Sequence[RegionRequest], style: Style, text: str | None, limits: Limits
) -> Answers:
    """Return the regions to caption; all of them must be valid."""
    if not regions:
        try:
            marked = alpha_mask(image.data)
        except MaskError as error:
            raise _bad(str(error)) from error
        answers = Answers([], [], [])
        if marked is None:
            answers.add_whole_image(image.size, style)
        else:
            answers = Answers([RegionAnswer(id="0")], [0], [RegionCall(marked, style)])
    else:
        answers = read_regions(regions, image, style, limits)
        for answer in answers.answers:
            _check(answer)
    if text is not None:
        answers.regions = [RegionCall(each.segmentation, each.style, each.question or text) for each in answers.regions]
    return answers


def _check(answer: RegionAnswer) -> None:
    """Raise a region's error: the OpenAI format has no place for it."""
    if answer.error is not None:
        raise _bad(f"messages: mask {answer.id}: {answer.error.message}")


class _Head:
    """Fields that all parts of an answer share."""

    def __init__(self, model: str) -> None:
        self._id, self._created, self._model = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model

    def of(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


async def _events(
    stream: AsyncGenerator[tuple[int, Event]], answers: Answers, head: _Head, limits: Limits, *, with_usage: bool
) -> AsyncGenerator[str]:
    """Yield OpenAI's chunks: the role of each choice first, then its text, then its end; last the line [DONE]."""

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None, **more}
        return server_sent({**head.of("chat.completion.chunk"), "choices": [choice]})

    for index in range(len(answers.regions)):
        yield chunk(index, {"role": "assistant", "content": ""})
    try:
        async with time_limit(limits), aclosing(stream):
            async for index, event in stream:
                if isinstance(event, str):
                    yield chunk(index, {"content": event})
                else:
                    answer = answers.add(index, event)
                    _check(answer)
                    logprobs = _logprobs(answer.logprobs)
                    yield chunk(index, {}, finish_reason=answer.finish_reason, logprobs=logprobs)
    except Exception as error:  # the status line is sent: errors can only be events
        yield failure_event(error, limits)
    else:
        if with_usage:
            yield server_sent({**head.of("chat.completion.chunk"), "choices": [], "usage": _usage(answers.usage)})
    yield "data: [DONE]\n\n"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "content": [
            {
                "token": each.token,
                "logprob": each.logprob,
                "bytes": list(each.token.encode()),
                "top_logprobs": [],
            }
            for each in tokens
        ]
    }


def _bad(message: str) -> RequestError:
    return RequestError(message, param="messages")
