"""The page at `/`: its files, its example images, and its security headers.

GET /                       the page for a browser; a JSON index for other clients
GET /page/NAME              style and scripts
GET /page/examples/NAME     example images: photos of the package and two drawn scenes

The page contacts only this service and runs only its own scripts; the headers enforce both in the browser.
"""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ureca.corpus.read import photos_directory

_FOLDER = Path(__file__).parents[1] / "page"

EXAMPLES: dict[str, Path] = {
    **{name: _FOLDER / "examples" / name for name in ("scene-cars.jpg", "scene-shapes.jpg")},
    **{name: photos_directory() / name for name in ("coffee.jpg", "astronaut.jpg", "rocket.jpg", "chelsea.jpg")},
}
"""Example images by name. The scenes are from the benchmark, which no training has seen. The photos are in the public
domain or CC0 (corpus/photos/LICENSES.md), so the page needs no credit line."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Revalidated on every load, so that a new release never mixes with cached old files.
    "Cache-Control": "no-cache",
}

_DAY = "public, max-age=86400"


class _Files(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI, index: dict[str, Any]) -> None:
    """Serve the page to browsers, and `index` as JSON to other clients."""
    router = APIRouter(include_in_schema=False)
    html = (_FOLDER / "index.html").read_text(encoding="utf-8")

    @router.api_route("/", methods=["GET", "HEAD"])  # probes use HEAD
    async def page(request: Request) -> Response:
        headers = {**HEADERS, "Vary": "Accept"}
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(html, headers=headers)
        return JSONResponse(index, headers=headers)

    @router.get("/page/examples/{name}")
    def example(name: str) -> Response:
        if name not in EXAMPLES:
            raise HTTPException(404)
        headers = {**HEADERS, "Cache-Control": _DAY}
        return Response(EXAMPLES[name].read_bytes(), media_type="image/jpeg", headers=headers)

    app.include_router(router)
    app.mount("/page", _Files(directory=_FOLDER / "files"))
