"""What a caller did wrong, in one JSON form: {"error": {"type", "message", "param"}}."""

from typing import Any

from ureca.errors import UrecaError

__all__ = ["RequestError", "error_body"]


class RequestError(UrecaError):
    """A request that can't be answered; becomes a response of this status."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "invalid_request", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param


def error_body(kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The one JSON form of every error."""
    return {"error": {"type": kind, "message": message, "param": param}}
