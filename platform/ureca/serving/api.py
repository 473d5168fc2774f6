"""The HTTP API: a FastAPI application in front of anything that captions (`CaptionBackend`).

POST /v1/captions           captions for regions of one image; a faulty region gets its error in its own slot
POST /v1/trees              the regions of an image as a tree, captioned
POST /v1/regions            the regions that are found in an image, as a tree
POST /v1/chat/completions   the same in OpenAI's form; GET /v1/models
GET  /healthz               this process answers
GET  /readyz                the engine behind it answers; 503 until it does
GET  /                      the page for a browser, and for others what is where
"""

from collections.abc import Sequence

from fastapi import FastAPI

from ureca.serving.auth import BearerTokens
from ureca.serving.body_limit import BodyLimit
from ureca.serving.calls import CaptionBackend
from ureca.serving.captions import caption_routes
from ureca.serving.chat import chat_routes
from ureca.serving.errors import add_error_handlers
from ureca.serving.schema import ERROR_RESPONSES
from ureca.serving.settings import AccessToken, ImageUrls, Limits
from ureca.serving.web import add_page

__all__ = ["create_app"]


def create_app(
    backend: CaptionBackend,
    *,
    model_name: str,
    limits: Limits,
    access_tokens: Sequence[AccessToken] = (),
    image_urls: ImageUrls = ImageUrls(),  # noqa: B008 (frozen)
) -> FastAPI:
    """The application. Every error it answers with has the form of `error_body`."""
    app = FastAPI(
        title="URECA captioner",
        summary="A caption for every region of an image that fits it alone.",
        responses=ERROR_RESPONSES,
    )
    app.add_middleware(BodyLimit, max_bytes=limits.max_request_bytes)
    if access_tokens:  # added last, so it comes first: nobody unknown has a body read
        app.add_middleware(BearerTokens, tokens=access_tokens)
    add_error_handlers(app)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        await backend.check_health()
        return {"status": "ready"}

    app.include_router(caption_routes(backend, model_name=model_name, limits=limits, image_urls=image_urls))
    app.include_router(chat_routes(backend, model_name=model_name, limits=limits, image_urls=image_urls))
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
    add_page(app, {"service": "ureca captioner", "model": model_name, "links": links})
    return app
