"""The page where something goes wrong, where a token is asked for, on a phone, in the dark."""

import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from support.live_server import on_a_port
from support.page_driver import (
    LIMITS,
    RED,
    SIDE,
    WHITE,
    click,
    give,
    give_squares,
    on_screen,
    said,
    squares,
    wait_for_caption,
)

from ureca.serving.api.app import create_app
from ureca.serving.api.backend import OverloadedError
from ureca.serving.middleware.auth import new_token
from ureca.serving.settings import AccessToken

pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844}


def test_where_tokens_are_asked_for_the_page_asks_for_one(open_page, backend):
    token, digest = new_token()
    tokens = [AccessToken(name="ada", sha256=digest)]
    with on_a_port(create_app({"measured": backend}, limits=LIMITS, access_tokens=tokens)) as url:
        page = open_page(url)
        page.expected = "status of 401"
        give(page, squares())
        field = page.get_by_label("This service requires an access token")
        expect(field).to_be_focused()
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("does not accept this token")
        field.fill(token)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("regions found.")
        expect(page.locator("#access")).to_be_hidden()
        click(page, 120, 120)
        wait_for_caption(page, said(WHITE))
        assert backend.calls[0].tenant == "ada"
        kept = page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage)]")
        assert kept == [0, "", [token]]
        assert token not in page.content()


def test_what_the_service_refuses_is_told_in_its_words(page, backend):
    page.expected = "status of (503|413)"
    give_squares(page)
    backend.failure = OverloadedError()
    click(page, 120, 120)
    expect(page.get_by_role("alert")).to_contain_text("too many requests are queued; retry in a few seconds")
    expect(page.locator("#caption")).to_have_text("")
    backend.failure = None
    click(page, 70, 70)
    wait_for_caption(page, said(RED))
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_role("button", name="Another image").click()
    give(page, Image.new("RGB", (2000, 1000)))
    expect(page.get_by_role("alert")).to_contain_text("2000 x 1000 pixels; the limit is 1000000")


def test_a_file_that_is_no_image_and_a_service_that_is_gone_are_told(open_page, backend):
    with on_a_port(create_app({"measured": backend}, limits=LIMITS)) as url:
        page = open_page(url)
        for kind in ("image/png", "text/plain"):
            page.set_input_files("#file", {"name": "notes.txt", "mimeType": kind, "buffer": b"no image"})
            expect(page.get_by_role("alert")).to_contain_text("notes.txt: this browser can't read it as an image.")
            page.get_by_role("button", name="Close the message").click()
        give_squares(page)
    page.expected = "ERR_CONNECTION_REFUSED"
    click(page, 120, 120)
    expect(page.get_by_role("alert")).to_contain_text("The service can't be reached. Is it still running?")


def test_a_photo_that_its_camera_turned_stands_upright(page, backend):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = squares().crop((0, 0, SIDE, 180))
    give(page, lying, "phone.jpg", "image/jpeg", exif=exif.tobytes(), quality=95)
    expect(page.locator("#status")).to_contain_text("rotated upright")
    assert page.evaluate("[image.naturalWidth, image.naturalHeight]") == [180, 240]
    page.get_by_role("treeitem").first.locator(".row").first.click()
    expect(page.locator("#caption")).to_have_text(re.compile("^unique "))
    assert backend.calls[0].image.shape == (240, 180, 3)


def test_it_works_by_touch_on_a_phone(open_page, page_url):
    page = open_page(page_url, viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    give_squares(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.touchscreen.tap(*on_screen(page, 120, 120))
    wait_for_caption(page, said(WHITE))
    stage, caption = page.locator("#stage").bounding_box(), page.locator("#caption").bounding_box()
    assert stage["y"] + stage["height"] <= caption["y"] < PHONE["height"] - caption["height"]
    page.get_by_role("button", name="Polygon").tap()
    for place in ((10, 10), (60, 10), (60, 50), (10, 50)):
        page.touchscreen.tap(*on_screen(page, *place))
    page.get_by_role("button", name="Close", exact=True).tap()
    wait_for_caption(page, "unique 2000 at 10,10,50,40")
    sizes = page.evaluate("[...document.querySelectorAll('button, .row')].filter((each) => each.offsetParent)"
                          ".map((each) => [each.textContent, each.offsetHeight])")  # fmt: skip
    assert [each for each in sizes if each[1] < 44] == []
    last = page.get_by_role("treeitem").last.locator(".row")
    last.tap()
    expect(page.locator("#caption")).to_have_text(re.compile("^unique "))
    stage, row = page.locator("#stage").bounding_box(), last.bounding_box()
    assert -1 <= stage["y"] < 150, "the picture is out of sight"
    assert row["y"] >= stage["y"] + stage["height"], "the chosen row hides behind the picture"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_they_stand_on(open_page, page_url, scheme):
    page = open_page(page_url, color_scheme=scheme)

    def color(name: str) -> str:
        code = f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
        return str(page.evaluate(code))

    for ground in ("paper", "card", "on", "notice"):
        for word in ("ink", "soft", "accent"):
            assert contrast(color(word), color(ground)) >= 4.5, f"--{word} on --{ground}"
    for ground in ("paper", "card"):
        assert contrast(color("edge"), color(ground)) >= 3, f"--edge on --{ground}"


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colors, #rrggbb."""

    def luminance(color: str) -> float:
        channels = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
