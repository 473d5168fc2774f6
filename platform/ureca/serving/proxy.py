"""Proxy middleware: 503 with `Retry-After`, in the service's format, while no ingress answers.

Without it, Serve's proxy sends nothing if the ingress dies, which its HTTP server turns into a bare 500. If there is no
application (before the first one is deployed, and while the last one finishes its requests), the proxy answers 404.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=ureca.serving.proxy:middlewares

must be set in the environment in which Ray starts. `make` and `ureca serve` set it; elsewhere the proxy must find this
package.
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
_LOST = "the service was lost and is being replaced; retry"
_NOTHING_SERVED = "no service is running here: it is starting or ending; retry"


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
        """Return whether the proxy has no application, from its own /-/routes: {route: application}, or 503."""
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
    """Return the middleware for Ray Serve's proxy."""
    return [Middleware(RetryAfterMiddleware)]


def use_for_ray_started_here() -> None:
    """Make a Ray that this process starts later use `middlewares`."""
    os.environ.setdefault(_VARIABLE, "ureca.serving.proxy:middlewares")
