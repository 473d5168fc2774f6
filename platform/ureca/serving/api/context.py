"""Record of the request in progress, for its metrics and its access log line."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class RequestRecord:
    request_id: str
    model: str | None = None
    regions: int = 0
    """Requested captions."""
    invalid_regions: int = 0
    rejected: str | None = None
    """Error type of the response, or of the stream's last event."""
    began: float = field(default_factory=time.monotonic)

    def seconds_left(self, of: float) -> float:
        """Return the seconds left of a limit that started with the request; 0 at the end."""
        return max(0.0, self.began + of - time.monotonic())


_current: ContextVar[RequestRecord] = ContextVar("ureca_request")


def start_request(request_id: str) -> RequestRecord:
    """Start a request's record; `current_request` finds it in all tasks and threads of the request."""
    record = RequestRecord(request_id)
    _current.set(record)
    return record


def current_request() -> RequestRecord:
    """Return the record of the request in progress; outside of requests, an unused one."""
    return _current.get(RequestRecord(""))
