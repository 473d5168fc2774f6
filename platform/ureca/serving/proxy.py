"""What clients get from Serve's proxy where no ingress answers: 503 with `Retry-After`, in the service's own form.

The proxy alone says nothing where the ingress dies, which its HTTP server makes a bare 500, and 404 where it has no
application at all: before the first is there, and while the last one ends its requests.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=ureca.serving.proxy:middlewares

in the environment that Ray is started in. `make` and `ureca serve` set it; elsewhere the proxy must find this package.
Without it a request whose ingress dies gets a bare 500, and one that finds none gets a 503 that names no time.
"""

import json
import os
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ureca.serving.api.errors import RETRY_AFTER_SECONDS

_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_LOST = "the service was lost and is being replaced; try again"
_NOTHING_SERVED = "nothing is served here: the service is starting or ending; try again"


class RetryAfterMiddleware:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, proxy: ASGIApp) -> None:
        self._proxy = proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unavailable = _LOST
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started, unavailable
            if message["type"] == "http.response.start":
                if message["status"] == 404 and await self._serves_nothing(scope):
                    unavailable = _NOTHING_SERVED
                    return
                started = True
                if message["status"] == 503:
                    MutableHeaders(scope=message).setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
            elif message["type"] == "http.response.body" and not started:
                return
            await send(message)

        await self._proxy(scope, receive, watched_send)
        if scope["type"] == "http" and not started:
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            if request_id := Headers(scope=scope).get("x-request-id"):  # the client's or the proxy's
                headers["X-Request-Id"] = request_id
            error = {"type": "unavailable", "message": unavailable, "param": None}
            await JSONResponse({"error": error}, 503, headers)(scope, receive, send)

    async def _serves_nothing(self, scope: Scope) -> bool:
        """Whether the proxy has no application, as it says itself at /-/routes: {route: application}, or 503."""
        answer: dict[str, Any] = {"status": 200, "body": b""}

        async def read(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
            elif message["type"] == "http.response.body":
                answer["body"] += message.get("body", b"")

        asked = {"method": "GET", "path": "/-/routes", "raw_path": b"/-/routes", "root_path": "", "query_string": b""}
        await self._proxy({**scope, **asked}, _nothing_to_read, read)
        return bool(answer["status"] == 503 or json.loads(answer["body"]) == {})


async def _nothing_to_read() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its proxy."""
    return [Middleware(RetryAfterMiddleware)]


def use_for_ray_started_here() -> None:
    """Have a Ray that this process starts after this use `middlewares`."""
    os.environ.setdefault(_VARIABLE, "ureca.serving.proxy:middlewares")
