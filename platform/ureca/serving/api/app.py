"""The HTTP API: a FastAPI application in front of captioning backends (`CaptionBackend`), keyed by model name.

POST /v1/captions           captions for regions of one image; a faulty region gets its error in its own slot
POST /v1/trees              the regions of an image as a tree, captioned
POST /v1/regions            regions found in an image, as a tree
POST /v1/chat/completions   captions in the OpenAI format; GET /v1/models
GET  /healthz               this process answers
GET  /readyz                every model has an engine; 503 until then
GET  /                      the page for a browser, a JSON index for other clients
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from fastapi import FastAPI

from ureca.proposals.proposer import Proposer
from ureca.proposals.segments import propose_segments
from ureca.serving.api.backend import Backends, CaptionBackend, UnavailableError
from ureca.serving.api.captions import caption_routes
from ureca.serving.api.chat import chat_routes
from ureca.serving.api.errors import add_error_handlers
from ureca.serving.api.request import read_image
from ureca.serving.api.schema import ERROR_RESPONSES
from ureca.serving.api.web import add_page
from ureca.serving.metrics import NoRecorder, Recorder
from ureca.serving.middleware.access_log import AccessLogMiddleware
from ureca.serving.middleware.auth import BearerAuthMiddleware
from ureca.serving.middleware.body_limit import BodyLimitMiddleware
from ureca.serving.middleware.drain import Drain, DrainMiddleware
from ureca.serving.settings import AccessToken, ImageUrls, Limits


def create_app(
    backends: Backends,
    *,
    limits: Limits,
    access_tokens: Sequence[AccessToken] = (),
    image_urls: ImageUrls = ImageUrls(),  # noqa: B008 (frozen)
    proposer: Proposer = propose_segments,
    recorder: Recorder = NoRecorder(),  # noqa: B008 (has no state)
    proxy_answers_id: bool = False,
    drain: Drain | None = None,
) -> FastAPI:
    """Create the application. All its errors have the form of `error_body`.

    Args:
        backends: captioning backends by model name.
        proposer: finds regions in images without masks, and regions at points.
        recorder: receives the metrics of `ureca.serving.metrics`.
        proxy_answers_id: a proxy in front returns `X-Request-Id`, as Ray Serve's does.
        drain: drains the service before shutdown; None: never.
    """
    app = FastAPI(
        title="URECA captioner",
        summary="Captions that identify each region of an image.",
        responses=ERROR_RESPONSES,
    )
    app.add_middleware(BodyLimitMiddleware, max_bytes=limits.max_request_bytes, max_seconds=limits.max_seconds)
    if access_tokens:  # added last, so it runs first: bodies of unauthenticated requests are not read
        app.add_middleware(BearerAuthMiddleware, tokens=access_tokens)
    app.add_middleware(DrainMiddleware, drain=drain or Drain())
    app.add_middleware(AccessLogMiddleware, recorder=recorder, proxy_answers_id=proxy_answers_id)
    add_error_handlers(app)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        await asyncio.gather(*(_check(name, backend) for name, backend in backends.items()))
        return {"status": "ready"}

    read = partial(read_image, limits=limits, urls=image_urls, proposer=proposer)
    app.include_router(caption_routes(backends, limits=limits, read_image=read))
    app.include_router(chat_routes(backends, limits=limits, read_image=read))
    links = {
        "page": "/",
        "docs": "/docs",
        "captions": "/v1/captions",
        "trees": "/v1/trees",
        "regions": "/v1/regions",
        "chat": "/v1/chat/completions",
        "models": "/v1/models",
        "health": "/healthz",
        "ready": "/readyz",
    }
    add_page(app, {"service": "ureca captioner", "models": list(backends), "links": links})
    return app


async def _check(name: str, backend: CaptionBackend) -> None:
    try:
        await backend.check_health()
    except UnavailableError as error:
        raise UnavailableError(f"{name}: {error}") from error
