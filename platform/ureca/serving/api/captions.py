"""POST /v1/captions, /v1/trees and /v1/regions."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from ureca.engine.results import Event
from ureca.errors import MaskError
from ureca.regions.tree import DropReason, Mask, MaskTree, Region, build_mask_tree
from ureca.serving.api.backend import Backends, CaptionBackend, CaptionCall, RegionCall
from ureca.serving.api.context import current_request
from ureca.serving.api.errors import RequestError, describe, log_fault
from ureca.serving.api.request import Answers, ImageReader, ReadImage, read_regions, read_sampling
from ureca.serving.api.schema import (
    STREAM_RESPONSES,
    CaptionRequest,
    CaptionResponse,
    FindRequest,
    FoundRegion,
    FoundRegions,
    RegionAnswer,
    SlotError,
    TreeNode,
    TreeRequest,
    TreeResponse,
)
from ureca.serving.api.stream_batching import batch_stream
from ureca.serving.middleware.auth import tenant_of
from ureca.serving.settings import Limits

T = TypeVar("T")

_LOOK_FOR_CLIENT_SECONDS = 0.2


_DROPPED: dict[DropReason, str] = {
    "too_small": "covers too few pixels.",
    "too_large": "covers too much of the image.",
    "too_few_levels": "has too few levels of parts.",
    "parent_dropped": "is part of a region that was dropped.",
}


def caption_routes(backends: Backends, *, limits: Limits, read_image: ImageReader) -> APIRouter:
    """Create the routes for captions, trees and regions."""
    router = APIRouter()

    @router.post(
        "/v1/captions",
        response_model=CaptionResponse,
        response_model_exclude_none=True,
        responses=STREAM_RESPONSES,
    )
    async def captions(request: CaptionRequest, http: Request) -> Any:
        """Caption regions of one image; a faulty region gets its error in its own slot."""
        model, backend = choose_model(request.model, backends)
        sampling = read_sampling(request, limits)
        image = await with_timeout(limits, read_image(request.image))
        reading = asyncio.to_thread(read_regions, request.regions, image, request.style, limits)
        answers = await with_timeout(limits, reading)
        if request.image_caption:
            answers.add_whole_image(image.size, request.style)
        call = answers.call(image, sampling, tenant_of(http.scope))
        if request.stream:
            events = _events(await peek_first_event(backend, call, limits, http), answers, model, limits)
            return event_stream(events)
        await fill(backend, call, answers, limits)
        whole = answers.answers.pop() if request.image_caption else None
        return CaptionResponse(model=model, captions=answers.answers, image=whole, usage=answers.usage)

    @router.post("/v1/trees", response_model=TreeResponse, response_model_exclude_none=True)
    async def trees(request: TreeRequest, http: Request) -> Any:
        """Arrange regions as a tree and caption all of them."""
        model, backend = choose_model(request.model, backends)
        sampling = read_sampling(request, limits)
        image = await with_timeout(limits, read_image(request.image))
        tree, dropped, asked = await with_timeout(limits, asyncio.to_thread(_tree, request, image, limits))
        nodes = Answers(
            [RegionAnswer(id=region.region_id) for region in tree.regions],
            list(range(len(tree.regions))),
            [
                RegionCall(region.segmentation, *asked.get(region.region_id, (request.style, None)))
                for region in tree.regions
            ],
        )
        if request.captions:
            await fill(backend, nodes.call(image, sampling, tenant_of(http.scope)), nodes, limits)
        return TreeResponse(model=model, regions=_nodes(tree, nodes), dropped=dropped, usage=nodes.usage)

    @router.post("/v1/regions", response_model=FoundRegions)
    async def regions(request: FindRequest) -> Any:
        """Find regions in an image by color and arrange them as a tree, without a model."""
        image = await with_timeout(limits, read_image(request.image))
        tree = await with_timeout(limits, asyncio.to_thread(_found_tree, image, limits))
        return FoundRegions(
            regions=[FoundRegion(id=region.region_id, **_tree_place(region, tree)) for region in tree.regions]
        )

    return router


def choose_model(asked: str | None, backends: Backends) -> tuple[str, CaptionBackend]:
    """Return the requested model, or the first one. Raises RequestError (404): unknown model."""
    name = next(iter(backends)) if asked is None else asked
    if name not in backends:
        raise RequestError(
            f"model: {name!r} is not served here. Available: {', '.join(backends)}.",
            status=404,
            kind="model_not_found",
            param="model",
        )
    current_request().model = name
    return name, backends[name]


async def fill(backend: CaptionBackend, call: CaptionCall, answers: Answers, limits: Limits) -> None:
    """Caption the call's regions and fill in their answers. Raises RequestError at the time limit."""
    if not call.regions:
        return
    captions = await with_timeout(limits, backend.caption(call))
    for index, caption in enumerate(captions):
        answers.add(index, caption)


async def peek_first_event(
    backend: CaptionBackend, call: CaptionCall, limits: Limits, http: Request
) -> AsyncGenerator[tuple[int, Event]]:
    """Return the backend's stream after its first event, up to which a request can still be refused with a status.

    Raises RequestError at the time limit, ClientDisconnect if the client leaves, and the backend's errors.
    """
    stream = backend.stream(call)
    first = []
    if call.regions:
        waited_for = asyncio.ensure_future(anext(stream))
        try:
            first.append(await with_timeout(limits, _while_client_stays(waited_for, http)))
        except BaseException:
            waited_for.cancel()
            await asyncio.gather(waited_for, return_exceptions=True)
            await stream.aclose()
            raise

    async def whole() -> AsyncGenerator[tuple[int, Event]]:
        async with aclosing(stream):
            for event in first:
                yield event
            async for event in stream:
                yield event

    return whole()


async def _while_client_stays(work: asyncio.Future[T], http: Request) -> T:
    """Await `work`. Raises ClientDisconnect if the client leaves: no response has started that would notice it."""
    while not work.done():
        if await http.is_disconnected():
            raise ClientDisconnect
        await asyncio.wait([work], timeout=_LOOK_FOR_CLIENT_SECONDS)
    return work.result()


def time_limit(limits: Limits) -> asyncio.Timeout:
    """Return the time-out that is left to the request."""
    return asyncio.timeout(current_request().seconds_left(limits.max_seconds))


async def with_timeout(limits: Limits, work: Awaitable[T]) -> T:
    """Await `work`. Raises RequestError at the time limit; a thread then still finishes, without effect."""
    try:
        async with time_limit(limits):
            return await work
    except TimeoutError as error:
        raise too_slow(limits) from error


def too_slow(limits: Limits) -> RequestError:
    return RequestError(
        f"not done within {limits.max_seconds:g} s, this service's limit. Send fewer regions per request.",
        status=503,
        kind="timeout",
    )


async def _events(
    stream: AsyncGenerator[tuple[int, Event]], answers: Answers, model: str, limits: Limits
) -> AsyncGenerator[str]:
    """Yield server-sent events, each one JSON: {"id", "delta"}; once per region {"id", "finish_reason", "caption"} or
    {"id", "error"}; last {"model", "usage"}, then the line [DONE]."""
    for answer in answers.answers:
        if answer.error is not None:
            yield server_sent({"id": answer.id, "error": answer.error.model_dump()})
    try:
        async with time_limit(limits), aclosing(stream):
            async for index, event in stream:
                if isinstance(event, str):
                    yield server_sent({"id": answers.answers[answers.slots[index]].id, "delta": event})
                else:
                    yield server_sent(answers.add(index, event).model_dump(exclude_none=True))
    except Exception as error:  # the status line is sent: errors can only be events
        yield failure_event(error, limits)
    else:
        yield server_sent({"model": model, "usage": answers.usage.model_dump()})
    yield "data: [DONE]\n\n"


def event_stream(events: AsyncGenerator[str]) -> StreamingResponse:
    """Create the response that sends these server-sent events."""

    async def pieces() -> AsyncGenerator[str]:
        async with aclosing(batch_stream(events)) as events_together:
            async for some in events_together:
                yield "".join(some)

    return StreamingResponse(pieces(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def failure_event(error: Exception, limits: Limits) -> str:
    """Return the final event of a stream that failed."""
    status, body = describe(too_slow(limits) if isinstance(error, TimeoutError) else error)
    if status == 500:
        log_fault(error)
    return server_sent(body)


def server_sent(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _tree(
    request: TreeRequest, image: ReadImage, limits: Limits
) -> tuple[MaskTree, list[RegionAnswer], dict[str, tuple[str, str | None]]]:
    """Build the tree of the request's regions, or of those found in the image.

    Returns the tree, the dropped regions, and style and question by region id.
    """
    if request.regions is None:
        tree = _found_tree(image, limits)
        return tree, _dropped(tree), {}
    read = read_regions(request.regions, image, request.style, limits)
    masks = [Mask(read.answers[slot].id, region.segmentation)
             for slot, region in zip(read.slots, read.regions, strict=True)]  # fmt: skip
    faulty = [answer for answer in read.answers if answer.error]
    try:
        tree = build_mask_tree(masks, image.size)
    except MaskError as error:
        raise RequestError(f"regions: {error}", param="regions") from error
    asked = {
        read.answers[slot].id: (region.style, region.question)
        for slot, region in zip(read.slots, read.regions, strict=True)
    }
    return tree, [*faulty, *_dropped(tree)], asked


def _found_tree(image: ReadImage, limits: Limits) -> MaskTree:
    return build_mask_tree(image.proposed[: limits.max_regions], image.size)


def _dropped(tree: MaskTree) -> list[RegionAnswer]:
    return [
        RegionAnswer(id=each.region_id, error=SlotError(type="dropped", message=f"the region {_DROPPED[each.reason]}"))
        for each in tree.dropped
    ]


def _nodes(tree: MaskTree, answers: Answers) -> list[TreeNode]:
    return [
        TreeNode(**answer.model_dump(), merged_ids=list(region.merged_ids), **_tree_place(region, tree))
        for region, answer in zip(tree.regions, answers.answers, strict=True)
    ]


def _tree_place(region: Region, tree: MaskTree) -> dict[str, Any]:
    """Return the fields of a `TreePlace`."""
    return {
        "parent": tree.regions[region.parent].region_id if region.parent >= 0 else None,
        "depth": region.depth,
        "area": region.area,
        "bbox": list(region.bbox),
        "rle": dict(region.segmentation),
    }
