"""Bearer token authentication.

The configuration holds each token's SHA-256 and no token; `ureca token NAME` creates one. A token is 256 random bits,
so its plain hash can't be reversed, unlike a password's.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ureca.serving.api.errors import error_body
from ureca.serving.settings import AccessToken

OPEN_PATHS = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")
"""Paths without authentication, which reveal no image; also everything below `/page/`."""
_OPEN_BELOW = "/page/"
_REFUSAL = "no valid access token. Send `Authorization: Bearer TOKEN` with a token from this service's operator."


class BearerAuthMiddleware:
    """ASGI middleware: 401 without a known token; the token's name becomes the request's tenant."""

    def __init__(self, app: ASGIApp, *, tokens: Sequence[AccessToken]) -> None:
        self._app = app
        self._tokens = [(each.name, bytes.fromhex(each.sha256)) for each in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = header.partition(b" ")
        name = self._name_of(token.strip()) if scheme.lower() == b"bearer" else None
        if name is None:
            await JSONResponse(error_body("unauthorized", _REFUSAL), 401, {"WWW-Authenticate": "Bearer"})(
                scope, receive, send
            )
            return
        scope.setdefault("state", {})["tenant"] = name
        await self._app(scope, receive, send)

    def _name_of(self, token: bytes) -> str | None:
        digest, found = hashlib.sha256(token).digest(), None
        for name, known in self._tokens:  # compare all, so that the duration reveals nothing
            if hmac.compare_digest(digest, known):
                found = name
        return found


def path_below_prefix(scope: Scope) -> str:
    """Return a request's path without Serve's route_prefix (its root path)."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _is_open(scope: Scope) -> bool:
    path = path_below_prefix(scope)
    return path in OPEN_PATHS or path.startswith(_OPEN_BELOW)


def tenant_of(scope: Scope) -> str:
    """Return the name of the request's token; empty without authentication."""
    return str(scope.get("state", {}).get("tenant", ""))


def new_token() -> tuple[str, str]:
    """Create a token; return it with its SHA-256 for the configuration."""
    token = f"ureca_{secrets.token_urlsafe(32)}"
    return token, hashlib.sha256(token.encode()).hexdigest()
