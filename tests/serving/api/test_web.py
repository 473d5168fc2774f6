"""The page's files over HTTP: who gets what, of which type, under which headers."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

import ureca
from ureca.serving.api.web import EXAMPLES

FOLDER = Path(ureca.__file__).parent / "serving" / "page"
FILES = sorted(path.name for path in (FOLDER / "files").iterdir())
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def test_a_browser_gets_the_page_and_others_get_json(api):
    page = api.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == (FOLDER / "index.html").read_text(encoding="utf-8")
    for accept in ("*/*", "application/json"):
        assert api.get("/", headers={"Accept": accept}).json()["models"] == ["measured"]
    assert page.headers["vary"] == "Accept", "a cache must not give one the other's"
    head = api.head("/")
    assert (head.status_code, head.text) == (200, "")


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES), "/page/examples/coffee.jpg"])
def test_every_file_says_what_may_run_and_that_it_is_what_it_says(api, path):
    response = api.get(path, headers=BROWSER)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] in ("no-cache", "public, max-age=86400")
    kind = {".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml", ".jpg": "image/jpeg", "": "text/html"}
    assert kind[Path(path).suffix] in response.headers["content-type"]


def test_an_unchanged_file_is_not_sent_again(api):
    first = api.get("/page/page.js")
    again = api.get("/page/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


def test_every_example_of_the_page_is_served_as_an_image(api):
    assert set(re.findall(r'data-name="([^"]+)"', (FOLDER / "index.html").read_text())) == set(EXAMPLES)
    for name in EXAMPLES:
        with Image.open(io.BytesIO(api.get(f"/page/examples/{name}").content)) as image:
            assert min(image.size) >= 256


@pytest.mark.parametrize(
    "path", ["/page/nothing.js", "/page/examples/nothing.jpg", "/page/%2e%2e/index.html", "/page/../web.py", "/page/"]
)
def test_nothing_else_is_served(api, path):
    response = api.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found"


def test_the_page_names_no_other_host_and_holds_no_script_or_style_of_its_own():
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=", html)
    for path in [FOLDER / "index.html", *(FOLDER / "files").iterdir()]:
        hosts = set(re.findall(r"https?://([\w.]+)", path.read_text(encoding="utf-8")))
        assert hosts <= {"www.w3.org"}, f"{path.name} names {hosts}"  # the name of SVG's elements, nothing to fetch
