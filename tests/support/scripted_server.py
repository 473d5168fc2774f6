"""A service on a port with scripted answers and disconnects."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def scripted(*answers: tuple[int, str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its URL, and the bodies of the requests so far. Each answer, a status and a body, ends with the connection."""
    asked: list[dict[str, Any]] = []

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802 (its name in the library)
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers[len(asked) - 1]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
