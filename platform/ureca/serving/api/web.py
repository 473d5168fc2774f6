"""The page at `/`: its files, its examples, and the headers that keep it to itself.

GET /                       the page for a browser; JSON of what is where for everything else
GET /page/NAME              its style and scripts
GET /page/examples/NAME     images to begin with: photos of the package and drawn scenes

The page asks nobody but this service, and no script runs but its own files: the headers say so to the browser.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.exceptions import HTTPException

from ureca.corpus.read import photos_directory
from ureca.nano.scenes.draw import draw_scene

EXAMPLES: dict[str, int | None] = {
    "scene-cars.jpg": 910_000_002,
    "scene-shapes.jpg": 910_000_005,
    "coffee.jpg": None,
    "astronaut.jpg": None,
    "rocket.jpg": None,
    "chelsea.jpg": None,
}
"""Name of each example, and its seed if it is drawn: scenes of the benchmark, which no training has seen. The photos
are in the public domain or CC0 (photos/LICENSES.md), so the page owes nobody a line."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked about each time and sent again only if changed: a new release is never seen half.
    "Cache-Control": "no-cache",
}

_FOLDER = Path(__file__).parents[1] / "page"
_DAY = "public, max-age=86400"


class _Files(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI, index: dict[str, Any]) -> None:
    """Serve the page, and `index` to those who don't ask for HTML."""
    router = APIRouter(include_in_schema=False)
    html = (_FOLDER / "index.html").read_text(encoding="utf-8")

    @router.api_route("/", methods=["GET", "HEAD"])  # probes ask by HEAD
    async def page(request: Request) -> Response:
        headers = {**HEADERS, "Vary": "Accept"}
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(html, headers=headers)
        return JSONResponse(index, headers=headers)

    @router.get("/page/examples/{name}")
    def example(name: str) -> Response:
        if name not in EXAMPLES:
            raise HTTPException(404)
        return Response(_example(name), media_type="image/jpeg", headers={**HEADERS, "Cache-Control": _DAY})

    app.include_router(router)
    app.mount("/page", _Files(directory=_FOLDER / "files"))


@cache
def _example(name: str) -> bytes:
    seed = EXAMPLES[name]
    if seed is None:
        return (photos_directory() / name).read_bytes()
    file = io.BytesIO()
    Image.fromarray(draw_scene(seed).image).save(file, "JPEG", quality=95)  # as `write_scenes` does
    return file.getvalue()
