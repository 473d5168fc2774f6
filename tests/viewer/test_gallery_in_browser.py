"""The gallery in headless Chromium: it fetches nothing, finds, opens and marks what it is asked for, by mouse,
by keyboard and on a phone."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from support.sample_gallery import HOSTILE, NUM_PLAIN, write_sample

from ureca.viewer.gallery import write_gallery

pytestmark = pytest.mark.slow

NUM_IMAGES = NUM_PLAIN + 5
FLAGGED = NUM_PLAIN
"""Number of the image called flagged."""
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    write_gallery(folder / "gallery.html", str(write_sample(folder)))
    return (folder / "gallery.html").as_uri()


@pytest.fixture
def page(browser, gallery):
    page = browser.new_page()
    page.errors, page.requests = [], []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(gallery)
    yield page
    assert page.errors == []
    page.close()


def open_image(page, gallery, number, region=None):
    page.goto(f"{gallery}#{number}" + ("" if region is None else f"/{region}"))


def classes(locator):
    return (locator.get_attribute("class") or "").split()


def test_it_opens_without_errors_and_fetches_nothing(page, gallery):
    page.wait_for_load_state("networkidle")
    for number in range(NUM_IMAGES):
        open_image(page, gallery, number, 0)
    assert {url.split("#")[0] for url in page.requests if not url.startswith("data:")} == {gallery}
    assert page.evaluate("window.broken") is None, "text from the table ran as a script"
    open_image(page, gallery, FLAGGED + 1, 1)
    assert page.locator(".captions dd").last.text_content() == HOSTILE


def test_the_sheet_comes_in_pages(page):
    cards = page.locator("#sheet .card")
    assert cards.count() == 24
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    assert picture.std() > 10, "a blank page"
    page.get_by_label("Next page").click()
    assert cards.count() == NUM_IMAGES - 24
    assert "page 2 of 2" in page.locator(".pager").text_content()
    page.keyboard.press("ArrowLeft")
    assert cards.count() == 24


def test_pointing_marks_a_region_in_the_picture_and_in_the_tree(page):
    page.locator(".card").nth(3).click()
    expect(page.locator("h2")).to_have_text("plain_03")
    path, row = page.locator("path[data-region='3']"), page.locator(".region[data-region='3']")
    before = page.locator(".stage").screenshot()
    row.hover()
    assert "on" in classes(path)
    assert page.locator(".stage").screenshot() != before, "the mark can't be seen"
    expect(page.locator(".pointed")).to_have_text("4unique words 3")
    page.mouse.move(0, 0)
    assert "on" not in classes(path)
    path.hover()
    assert "on" in classes(row)


def test_the_smallest_region_under_the_pointer_is_the_one_meant(page, gallery):
    open_image(page, gallery, 0)
    box = page.locator(".stage").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 35 / 120, box["y"] + box["height"] * 40 / 90)
    expect(page).to_have_url(re.compile(r"#0/3$"))
    page.mouse.click(box["x"] + box["width"] * 10 / 120, box["y"] + box["height"] * 10 / 90)
    expect(page).to_have_url(re.compile(r"#0/0$"))


def test_the_tree_is_nested_as_the_regions_are(page, gallery):
    open_image(page, gallery, 0)
    depth = page.evaluate(
        """[...document.querySelectorAll(".region")].map((row) => {
            let depth = -1;
            for (let at = row; at; at = at.parentElement) depth += at.tagName === "UL";
            return [Number(row.dataset.region), depth];
        })"""
    )
    assert sorted(depth) == [[0, 0], [1, 1], [2, 1], [3, 2]]


def test_an_open_region_shows_every_caption_and_what_it_may_be_taken_for(page, gallery):
    open_image(page, gallery, FLAGGED)
    page.locator(".region[data-region='1'] .row").click()
    more = page.locator(".region[data-region='1'] .more")
    said = more.locator(".captions dd").all_text_contents()
    assert said == ["short words 1", "long words 1; it has a part", "unique words 1"]
    alike, other = more.locator(".distractors li").all_text_contents()
    assert "unique words 2" in alike
    assert "0.97 alike · distinguished by: left, not right" in alike
    assert "0.91 alike · not distinguished" in other
    text = more.text_content()
    for fact in ("22.2 % of the image", "2,400 pixels", "uniqueness 0.50", "merged with r1b", "color: teal", "id r1"):
        assert fact in text
    expect(page.locator(".region[data-region='1'] .flag.tag")).to_have_text("not unique")
    expect(page.locator("path.alike")).to_have_count(2)
    row, bar = page.locator(".region[data-region='1'] .row").bounding_box(), page.locator("form").bounding_box()
    assert row["y"] >= bar["y"] + bar["height"] - 1, "the opened row hides behind the filters"
    more.locator(".distractors button").first.click()
    expect(page).to_have_url(re.compile(rf"#{FLAGGED}/2$"))
    expect(page.locator(".more")).to_have_count(1)
    page.locator("summary").click()
    origin = page.locator("figcaption dl").text_content()
    assert "describerchat" in origin
    assert "prompt tokens120" in origin


def test_what_was_set_aside_shows_its_reason(page):
    page.select_option("#status", "kind ImageError")
    expect(page.locator(".card")).to_have_count(1)
    assert "ImageError: cut.png: not an image" in page.locator(".card").text_content()
    page.locator(".card").click()
    assert "Quarantined in step read: ImageError" in page.locator(".tree").text_content()
    assert "cut" in page.locator(".stage").text_content()
    page.select_option("#status", "status quarantined")
    page.get_by_label("Next image").click()
    expect(page.locator("h2")).to_have_text("without_masks")
    expect(page.locator(".stage img")).to_have_count(1)


def test_a_lost_file_leaves_outlines(page, gallery):
    open_image(page, gallery, FLAGGED + 2, 1)
    assert "no such file" in page.locator(".stage .notice").text_content()
    expect(page.locator(".stage path[data-region]")).to_have_count(4)
    assert page.locator(".stage").bounding_box()["height"] > 200


@pytest.mark.parametrize(
    ("choices", "regions", "images"),
    [
        ({"flag": "flagged"}, 5, 2),
        ({"flag": "flag not unique"}, 1, 1),
        ({"flag": "fine", "depth": "2"}, 32, 32),
        ({"depth": "1"}, 66, 33),
        ({"size": "huge", "depth": "1"}, 0, 0),
        ({"size": "huge"}, 33, 33),
        ({"status": "status quarantined"}, 0, 2),
    ],
)
def test_filters_count_regions_and_images(page, choices, regions, images):
    for name, value in choices.items():
        page.select_option(f"#{name}", value)
    assert page.locator("#found").text_content() == (
        f"{regions} region{'' if regions == 1 else 's'} in {images} image{'' if images == 1 else 's'}"
    )
    expect(page.locator(".card")).to_have_count(min(images, 24))
    if not images:
        expect(page.locator(".cards")).to_have_text("Nothing is like that.")
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function(f"document.querySelector('#found').value.endsWith('in {NUM_IMAGES} images')")


def test_search_finds_words_of_captions_ids_and_errors_and_marks_them(page):
    def found(words):
        page.fill("#words", words)
        return page.locator("#found").text_content()

    assert found("UNIQUE words 3") == "32 regions in 32 images"
    assert found("words part 3 short") == "33 regions in 33 images", "all words in one region"
    assert found("plain_07") == "4 regions in 1 image"
    assert found("no masks") == "0 regions in 1 image"
    assert found("nowhere") == "0 regions in 0 images"
    found("words 3")
    page.locator(".card").first.click()
    assert page.locator(".region[data-region='3'] mark").all_text_contents() == ["words", "3"]
    assert [row for row in range(4) if "dim" in classes(page.locator(f".region[data-region='{row}']"))] == [0, 1, 2]


def test_everything_can_be_reached_by_keyboard(page):
    page.keyboard.press("/")
    page.keyboard.type("unique words 2")
    page.keyboard.press("Escape")
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("h2")).to_have_text("plain_00")
    page.keyboard.press("ArrowRight")
    expect(page.locator("h2")).to_have_text("plain_01")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert "on" in classes(page.locator("path[data-region='1']"))
    page.keyboard.press("Enter")
    expect(page.locator(".row[aria-expanded='true']")).to_have_count(1)
    page.wait_for_function("document.activeElement.getAttribute('aria-expanded') == 'true'")
    before = page.locator(".stage").screenshot()
    page.keyboard.press("o")
    assert page.locator(".stage").screenshot() != before
    page.keyboard.press("o")
    page.keyboard.press("Escape")
    expect(page.locator(".more")).to_have_count(0)
    page.keyboard.press("Escape")
    page.locator("#sheet").wait_for(state="visible")
    page.wait_for_function("document.activeElement.querySelector('.name')?.textContent == 'plain_01'")


def test_it_fits_a_phone_and_the_picture_stays_in_sight(page, gallery):
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    open_image(page, gallery, FLAGGED, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator(".stage").bounding_box()["width"] > 250
    assert all(box >= 44 for box in page.evaluate("[...document.querySelectorAll('.row')].map((r) => r.offsetHeight)"))
    stage, row = page.locator(".stage").bounding_box(), page.locator(".region[data-region='1'] .row").bounding_box()
    assert row["y"] >= stage["y"] + stage["height"], "the opened row hides behind the picture"
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert -1 <= page.locator(".stage").bounding_box()["y"] < 200
    page.set_viewport_size({"width": 1280, "height": 900})
