"""Access log: request ids (`X-Request-Id`), request metrics, and one JSON line per request.

    {"time": "2026-01-31T12:00:00.123+00:00", "request_id": "…", "method": "POST", "path": "/v1/captions",
     "status": 200, "tenant": "ada", "model": "nano_captioner", "regions": 3, "seconds": 0.412, "rejected": null}

It contains nothing of an image, a question, a caption or a token. `rejected` is the error type of the response or of
the stream's end; status 499 means that the client left.
"""

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ureca.serving.api.context import RequestRecord, start_request
from ureca.serving.api.errors import RETRY_AFTER_SECONDS, fault_response
from ureca.serving.metrics import REJECTED, REQUEST_SECONDS, REQUESTS, Recorder
from ureca.serving.middleware.auth import tenant_of

logger = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLIENT_LEFT = 499
_LONGEST_PATH = 200


class AccessLogMiddleware:
    """Outermost ASGI middleware: access log, request id, and `Retry-After` in every 503."""

    def __init__(self, app: ASGIApp, *, recorder: Recorder, proxy_answers_id: bool) -> None:
        """Wrap the application.

        Args:
            proxy_answers_id: a proxy in front gives every request an id and returns it, as Ray Serve's does; then only
                a
                different id is added to a response here.
        """
        self._app = app
        self._recorder = recorder
        self._proxy_answers_id = proxy_answers_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = start_request(given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex)
        began = time.perf_counter()
        status, ended = 0, False

        async def observed_send(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if not (self._proxy_answers_id and record.request_id == given):
                    headers["X-Request-Id"] = record.request_id
                if status == 503:
                    headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
            await send(message)
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, observed_send)
        except ClientDisconnect:
            pass  # the client is gone
        except Exception as error:  # Starlette's own last handler is outside of all middleware
            if status:
                raise
            await fault_response(error)(scope, receive, observed_send)
        finally:
            self._note(scope, record, status if ended else _CLIENT_LEFT, time.perf_counter() - began)

    def _note(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        route = getattr(
            scope.get("route"), "path", "none"
        )  # the route, not the path: clients can invent any number of paths
        self._recorder.record(REQUESTS, 1, route=route, method=scope["method"], status=str(status))
        self._recorder.record(REQUEST_SECONDS, seconds, route=route)
        if record.rejected is not None:
            self._recorder.record(REJECTED, 1, reason=record.rejected)
        if record.invalid_regions:
            self._recorder.record(REJECTED, record.invalid_regions, reason="invalid_region")
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": record.request_id,
            "method": scope["method"],
            "path": scope["path"][:_LONGEST_PATH],
            "status": status,
            "tenant": tenant_of(scope),
            "model": record.model,
            "regions": record.regions,
            "seconds": round(seconds, 3),
            "rejected": record.rejected,
        }
        logger.info(json.dumps(line))


def log_access_to_stdout() -> None:
    """Write one plain line per request to stdout; in a Ray worker that is `worker-….out` in the session's `logs`."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
