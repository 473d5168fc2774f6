"""What is noted of the request in progress, for its metrics and its line in the access log."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class RequestRecord:
    request_id: str
    model: str | None = None
    regions: int = 0
    """That captions were asked for."""
    invalid_regions: int = 0
    rejected: str | None = None
    """Type of the error that the request was answered with, or its stream ended with."""
    began: float = field(default_factory=time.monotonic)

    def seconds_left(self, of: float) -> float:
        """Of so many from its beginning; 0 where they are over."""
        return max(0.0, self.began + of - time.monotonic())


_current: ContextVar[RequestRecord] = ContextVar("ureca_request")


def start_request(request_id: str) -> RequestRecord:
    """The record of a request that begins; `current_request` finds it in all tasks and threads that this one starts."""
    record = RequestRecord(request_id)
    _current.set(record)
    return record


def current_request() -> RequestRecord:
    """The record of the request that is being handled; outside of any, one that nobody reads."""
    return _current.get(RequestRecord(""))
