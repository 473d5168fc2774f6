"""The report in headless Chromium: it opens without errors, fetches nothing, and marks what is pointed at."""

import io

import numpy as np
import pytest
from PIL import Image
from support.sample_report import sample

from ureca.viewer.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report") / "report.html", sample())


@pytest.fixture
def page(browser, report):
    page = browser.new_page()
    page.errors, page.requests = [], []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    page.close()


def test_page_opens_without_errors_and_fetches_nothing(page, report):
    page.wait_for_load_state("networkidle")
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("window.broken") is None, "text from data ran as a script"
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_page_shows_its_pictures(page):
    stage = page.locator("#image-0 .stage")
    picture = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB"))
    assert picture.std() > 20, "a blank picture"
    whole = np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"))
    assert whole.std() > 10


def test_pointing_at_a_row_marks_its_outline_and_a_click_keeps_it(page):
    row, path = page.locator("#image-0 [data-region='2']").first, page.locator("#r0-2")
    rows = page.locator("#image-0 .region")
    before = page.locator("#image-0 .stage").screenshot()
    assert "on" not in (path.get_attribute("class") or "")

    rows.nth(1).hover()
    assert path.get_attribute("class") == "on"
    assert page.locator("#image-0 .stage").screenshot() != before, "the mark can't be seen"
    page.mouse.move(0, 0)
    assert path.get_attribute("class") == ""

    rows.nth(1).locator(".badge").click()
    page.mouse.move(0, 0)
    assert path.get_attribute("class") == "on"
    assert row.count() == 1
    assert page.locator("#image-0 .stage path.on").count() == 1
    assert page.errors == []


def test_clicking_a_region_in_the_picture_marks_its_row(page):
    page.locator("#r0-3").click()
    assert "on" in page.locator("#image-0 .region[data-region='3']").get_attribute("class")


def test_clicking_a_small_region_unfolds_its_row(page):
    hidden = page.locator("#image-1 details.more .region").last
    number = hidden.get_attribute("data-region")
    assert not hidden.is_visible()
    page.locator(f"#r1-{number}").dispatch_event("click")
    assert hidden.is_visible()


def test_without_scripts_a_number_still_marks_its_region(browser, report):
    page = browser.browser.new_context(java_script_enabled=False).new_page()
    page.goto(report.as_uri())
    before = page.locator("#image-0 .stage").screenshot()
    page.locator("#image-0 .badge").nth(1).click()
    assert page.url.endswith("#r0-2")
    assert page.locator("#image-0 .stage").screenshot() != before
    page.close()


def test_page_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#image-0 .stage").bounding_box()["width"] > 280
