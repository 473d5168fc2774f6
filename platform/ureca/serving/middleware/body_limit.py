"""Refuse request bodies that are too large, before they are in memory, or that arrive too slowly."""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ureca.serving.api.context import current_request
from ureca.serving.api.errors import error_body


class BodyLimitMiddleware:
    """ASGI middleware: 413 if Content-Length or the body exceeds `max_bytes`, 408 after `max_seconds`."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            await self._too_large()(scope, receive, send)
            return
        try:
            async with asyncio.timeout(current_request().seconds_left(self._max_seconds)):
                body = await self._read(receive)
        except TimeoutError:
            message = (
                f"the body did not arrive within {self._max_seconds:g} s, this service's limit. Send less per request."
            )
            await JSONResponse(error_body("timeout", message), 408)(scope, receive, send)
            return
        if body is None:  # the client left
            return
        if len(body) > self._max_bytes:
            await self._too_large()(scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()  # reports a client that leaves
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Read the body, or stop once it exceeds the limit; None if the client leaves."""
        body, more = bytearray(), True
        while more and len(body) <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body)

    def _too_large(self) -> JSONResponse:
        message = f"the body has more than {self._max_bytes} bytes. Scale the image down, or send fewer masks."
        return JSONResponse(error_body("too_large", message), 413)
