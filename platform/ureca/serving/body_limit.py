"""Refuse a request body that is too large before it is read into memory."""

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ureca.serving.errors import RequestError, error_body

__all__ = ["BodyLimit"]


class BodyLimit:
    """ASGI middleware: 413 if Content-Length says more than `max_bytes`, or if more arrives."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            await self._refuse(send)
            return
        num_received = 0

        async def counted() -> Message:
            nonlocal num_received
            message = await receive()
            num_received += len(message.get("body", b""))
            if num_received > self._max_bytes:
                raise RequestError(self._message(), status=413, kind="too_large")
            return message

        await self._app(scope, counted, send)

    async def _refuse(self, send: Send) -> None:
        body = json.dumps(error_body("too_large", self._message())).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _message(self) -> str:
        return f"the body has more than {self._max_bytes} bytes. Scale the image down, or send fewer masks."
