"""What clients get from Serve's proxy where no ingress answers: 503 with `Retry-After`, in the service's own form.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=ureca.serving.proxy:middlewares

in the environment that Ray is started in. `make` and `ureca serve` set it; elsewhere the proxy must find this package.
Without it a request whose ingress dies gets a bare 500, and one that finds none gets a 503 that names no time.
"""

import os

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ureca.serving.errors import RETRY_AFTER_SECONDS

__all__ = ["middlewares", "use_for_ray_started_here"]

_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_LOST = {"type": "unavailable", "message": "the service was lost and is being replaced; try again", "param": None}


class TellsWhenToRetry:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if message["status"] == 503:
                    MutableHeaders(scope=message).setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
            await send(message)

        await self._app(scope, receive, watched_send)
        if scope["type"] == "http" and not started:  # what the proxy does when the ingress is gone
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            if request_id := Headers(scope=scope).get("x-request-id"):  # the client's or the proxy's
                headers["X-Request-Id"] = request_id
            await JSONResponse({"error": _LOST}, 503, headers)(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its proxy."""
    return [Middleware(TellsWhenToRetry)]


def use_for_ray_started_here() -> None:
    """Have a Ray that this process starts after this use `middlewares`."""
    os.environ.setdefault(_VARIABLE, "ureca.serving.proxy:middlewares")
