"""The end of a service in order: new requests are refused, those in progress end, the queued ones among them.

Serve's own way ends all deployments of an application at once: what still waits in the ingress would find no replica.
"""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ureca.serving.api.errors import error_body
from ureca.serving.middleware.auth import path_below_prefix


class Drain:
    """How many requests are in progress, and whether new ones are taken."""

    def __init__(self) -> None:
        self.peek_first_event = False
        self.in_progress = 0

    async def wait(self) -> None:
        """Take no new requests from now on, and return when the last one in progress has ended."""
        self.peek_first_event = True
        while self.in_progress:
            await asyncio.sleep(0.1)


class DrainMiddleware:
    """ASGI middleware: 503 for all but `/healthz` once `drain` has begun."""

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._drain.peek_first_event and path_below_prefix(scope) != "/healthz":
            body = error_body("unavailable", "the service is ending; try again")
            await JSONResponse(body, 503)(scope, receive, send)
            return
        self._drain.in_progress += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.in_progress -= 1
