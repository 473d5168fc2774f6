"""Error responses: one JSON form, {"error": {"type", "message", "param"}}, and its status."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ureca.errors import InputError, UrecaError
from ureca.serving.api.backend import OverloadedError, UnavailableError
from ureca.serving.api.context import current_request

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
"""Value of `Retry-After` in every 503 (added by `ureca.serving.middleware.access_log`)."""


class RequestError(UrecaError):
    """A request that can't be answered; becomes a response with this status."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "invalid_request", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param


def error_body(kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the JSON form of an error, and store its type in the request's record."""
    current_request().rejected = kind
    return {"error": {"type": kind, "message": message, "param": param}}


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error."""
    if isinstance(error, RequestError):
        return error.status, error_body(error.kind, str(error), error.param)
    if isinstance(error, InputError):
        return 400, error_body("invalid_request", str(error))
    if isinstance(error, OverloadedError):
        return 503, error_body("overloaded", "too many requests are queued; retry in a few seconds")
    if isinstance(error, UnavailableError):
        return 503, error_body("unavailable", f"the captioner is not available yet: {error}")
    return 500, error_body("internal_error", "captioning failed; see the service's log")


def add_error_handlers(app: FastAPI) -> None:
    """Answer expected errors in the form of `error_body`; `ureca.serving.middleware.access_log` answers all others."""
    for kind in (RequestError, InputError, OverloadedError, UnavailableError):
        app.add_exception_handler(kind, _on_known)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_known(_: Request, error: Exception) -> Response:
    status, body = describe(error)
    return JSONResponse(body, status)


def fault_response(error: Exception) -> Response:
    """Return the response to an unexpected error, and log the error."""
    log_fault(error)
    status, body = describe(error)
    return JSONResponse(body, status)


def log_fault(error: Exception) -> None:
    """Log an error under the request's id, which the caller knows."""
    logger.error("request %s: captioning failed", current_request().request_id, exc_info=error)


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"] if part != "body")
    where = f"{path}: " if path and first["type"] != "json_invalid" else ""
    message = f"{where}{first['msg']}. See GET /docs for the request's format."
    return JSONResponse(error_body("invalid_request", message, path or None), 400)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}. See GET / for the available paths."
    body = error_body("not_found" if error.status_code == 404 else "invalid_request", message)
    return JSONResponse(body, error.status_code, headers=error.headers)
