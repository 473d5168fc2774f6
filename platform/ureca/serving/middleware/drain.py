"""Graceful shutdown: refuse new requests, finish those in progress, queued ones included.

Serve's own shutdown ends all deployments of an application at once: requests queued in the ingress would find no
replica.
"""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ureca.serving.api.errors import error_body
from ureca.serving.middleware.auth import path_below_prefix


class Drain:
    """Counts requests in progress and decides whether new ones are accepted."""

    def __init__(self) -> None:
        self.draining = False
        self.in_progress = 0

    async def wait(self) -> None:
        """Stop accepting requests, and return when the last one in progress has finished."""
        self.draining = True
        while self.in_progress:
            await asyncio.sleep(0.1)


class DrainMiddleware:
    """ASGI middleware: 503 for everything but `/healthz` once draining has started."""

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._drain.draining and path_below_prefix(scope) != "/healthz":
            body = error_body("unavailable", "the service is shutting down; retry")
            await JSONResponse(body, 503)(scope, receive, send)
            return
        self._drain.in_progress += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.in_progress -= 1
