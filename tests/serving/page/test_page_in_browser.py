"""The page in headless Chromium, before the real application: an image, its regions and their captions."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask as coco_mask
from support.page_driver import RED, WHITE, click, give_squares, on_screen, region_of, said, squares, wait_for_caption
from support.request_images import encoded

from ureca.corpus.formats.convert import import_regions
from ureca.corpus.table import iter_images

pytestmark = pytest.mark.slow


def test_an_example_shows_its_regions_and_nothing_is_fetched_from_elsewhere(page):
    expect(page.locator("#model")).to_have_text("measured")
    page.wait_for_load_state("networkidle")
    images = page.locator("#examples img")
    assert images.count() == 6
    assert images.evaluate_all("all => all.every((image) => image.complete && image.naturalWidth > 0)")
    page.get_by_role("button", name="Drawn car").click()
    expect(page.locator("#status")).to_have_text("24 regions found.")
    expect(page.locator("[data-region]:is(path)")).to_have_count(24)
    expect(page.get_by_role("treeitem")).to_have_count(24)
    expect(page.locator("#tree [role=group]").first).to_be_visible()
    picture = np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB"))
    assert picture.std() > 10, "a blank picture"


def test_a_file_may_be_dropped_and_an_image_pasted(page):
    for target, event, name in (("body", "drop", "dataTransfer"), ("body", "paste", "clipboardData")):
        page.evaluate(
            """([target, event, name, data]) => {
                const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], `${event}.png`, { type: "image/png" }));
                const what = event === "drop" ? DragEvent : ClipboardEvent;
                document.querySelector(target).dispatchEvent(new what(event, { [name]: transfer, bubbles: true }));
            }""",
            [target, event, name, encoded(squares())],
        )
        expect(page.locator("#image")).to_have_attribute("alt", f"The image {event}.png")
        expect(page.locator("#status")).to_contain_text("regions found.")
        page.get_by_role("button", name="Another image").click()


def test_a_click_captions_the_smallest_region_and_the_next_what_it_is_part_of(page, backend):
    backend.piece_seconds = 0.4
    give_squares(page)
    click(page, 120, 120)
    expect(page.locator("#caption[aria-busy=true]")).to_have_text(re.compile(r"^unique( 1600)?$"))  # not all of it yet
    wait_for_caption(page, said(WHITE))
    item = page.get_by_role("treeitem", name=said(WHITE), exact=True)
    expect(item).to_have_attribute("aria-selected", "true")
    backend.piece_seconds = 0
    click(page, 120, 120)
    wait_for_caption(page, said(RED))
    click(page, 70, 70)
    click(page, 110, 110)
    wait_for_caption(page, said(WHITE))
    assert len(backend.calls) == 2, "a caption that is there is asked for again"


def test_the_card_leads_up_and_down_the_tree(page):
    give_squares(page)
    click(page, 70, 70)
    wait_for_caption(page, said(RED))
    page.get_by_role("button", name="First part").click()
    wait_for_caption(page, said(WHITE))
    expect(page.locator("#facts")).to_contain_text("2.8 % of the image · 40 × 40 pixels at 100, 100 · part of ")
    expect(page.get_by_role("button", name="First part")).to_be_disabled()
    page.get_by_role("button", name="Parent").click()
    wait_for_caption(page, said(RED))


def test_pointing_marks_a_region_in_the_picture_and_in_the_list(page):
    give_squares(page)
    region = region_of(page, WHITE)
    path, row = page.locator(f"path[data-region='{region}']"), page.locator(f"li[data-region='{region}'] > .row")
    page.mouse.move(*on_screen(page, 120, 120))
    expect(row).to_have_class(re.compile("pointed"))
    page.mouse.move(5, 5)
    expect(row).not_to_have_class(re.compile("pointed"))
    before = page.locator("#stage").screenshot()
    row.hover()
    expect(path).to_have_class(re.compile("pointed"))
    assert page.locator("#stage").screenshot() != before, "the mark can't be seen"


def test_everything_can_be_done_by_keyboard(page):
    def tab_to(selector: str) -> None:
        for _ in range(40):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#file")
    give_squares(page)
    tab_to("[role=treeitem]")
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    for _ in range(len(page.get_by_role("treeitem").all())):
        if page.evaluate("document.activeElement.dataset.region") == region_of(page, WHITE):
            break
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    wait_for_caption(page, said(WHITE))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    wait_for_caption(page, said(RED))
    page.keyboard.press("Shift+Tab")
    tab_to_back = page.evaluate("document.activeElement.id")
    assert tab_to_back == "save", "the list is one stop of Tab"
    page.locator("input[value=unique]").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_caption(page, said(RED, "detailed"))
    page.get_by_role("button", name="Box").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stage")).to_be_focused()
    page.keyboard.press(" ")
    for key in ("ArrowRight", "Shift+ArrowRight", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    wait_for_caption(page, "detailed 290 at 120,120,29,10")
    page.get_by_role("button", name="Caption all").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#tree .text.soft")).to_have_count(0)


def test_all_are_captioned_in_one_request_in_a_style_or_with_a_question(page, backend):
    give_squares(page)
    num_regions = page.get_by_role("treeitem").count()
    page.get_by_role("button", name="Caption all").click()
    expect(page.locator("#status")).to_have_text(f"{num_regions} of {num_regions} captions")
    expect(page.locator("#tree .text").first).to_have_text(re.compile("^unique "))
    assert [len(call.regions) for call in backend.calls] == [num_regions]
    page.get_by_role("button", name="Caption all").click()
    expect(page.locator("#status")).to_have_text("Every region has its caption.")
    page.get_by_role("radio", name="Brief").check()
    click(page, 120, 120)
    wait_for_caption(page, said(WHITE, "brief"))
    page.get_by_role("textbox", name="Your own question").fill(" What color? ")
    page.keyboard.press("Enter")
    wait_for_caption(page, said(WHITE, "What color?"))
    click(page, 70, 70)
    wait_for_caption(page, said(RED, "What color?"))
    page.get_by_role("radio", name="Unique").check()
    wait_for_caption(page, said(RED))
    expect(page.get_by_role("textbox")).to_have_value("")


def test_another_choice_ends_the_work_behind_the_first(page, backend):
    backend.seconds = 30
    give_squares(page)
    page.get_by_role("button", name="Caption all").click()
    click(page, 120, 120)  # its caption is on its way already
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#tree .busy")).to_have_count(0)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert len(backend.calls) == 1
    click(page, 70, 70)
    expect(page.locator("#caption[aria-busy=true]")).to_be_visible()
    backend.seconds = 0
    click(page, 120, 120)
    wait_for_caption(page, said(WHITE))
    page.wait_for_timeout(500)
    assert (len(backend.calls), backend.num_closed) == (3, 3)


def test_where_several_models_are_served_each_is_asked_and_kept_apart(
    open_page, two_models_url, backend, second_backend
):
    page = open_page(two_models_url)
    expect(page.locator("#model")).to_have_text("")
    models = page.get_by_label("Model", exact=True)
    expect(models.locator("option")).to_have_text(["nano_one", "other"])
    expect(page.locator("#about-nano")).to_be_visible()
    give_squares(page)
    click(page, 120, 120)
    wait_for_caption(page, said(WHITE))
    assert (len(backend.calls), len(second_backend.calls)) == (1, 0)
    models.select_option("other")  # and the selection is captioned again
    wait_for_caption(page, said(WHITE))
    expect(page.locator("#about-nano")).to_have_attribute("hidden", "")
    assert (len(backend.calls), len(second_backend.calls)) == (1, 1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert json.loads(download.value.path().read_text())["info"]["model"] == "other"
    models.select_option("nano_one")
    wait_for_caption(page, said(WHITE))
    assert (len(backend.calls), len(second_backend.calls)) == (1, 1), "asked for a caption that it has"


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_copy_and_download_give_coco_captions_that_the_package_reads(open_page, page_url, tmp_path, has_clipboard):
    page = open_page(page_url, permissions=["clipboard-read", "clipboard-write"])
    if not has_clipboard:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    give_squares(page)
    page.get_by_role("button", name="Caption all").click()
    expect(page.locator("#tree .text.soft")).to_have_count(0)
    page.locator("#question").fill("What color?")
    click(page, 120, 120)
    page.get_by_role("button", name="Ask").click()
    wait_for_caption(page, said(WHITE, "What color?"))
    page.get_by_role("button", name="Copy JSON").click()
    expect(page.locator("#status")).to_have_text(re.compile(r"Copied: \d+ regions as COCO JSON\."))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "squares.json"
    text = download.value.path().read_text()
    if has_clipboard:
        assert page.evaluate("navigator.clipboard.readText()") == text
    [white] = [each for each in json.loads(text)["annotations"] if tuple(each["bbox"]) == WHITE]
    assert (white["caption"], white["short_caption"]) == (said(WHITE), None)
    assert white["answers"] == [{"question": "What color?", "answer": said(WHITE, "What color?")}]
    assert coco_mask.area(white["segmentation"]) == 1600

    squares().save(tmp_path / "squares.png")
    (tmp_path / "squares.json").write_text(text)
    import_regions(str(tmp_path / "squares.json"), str(tmp_path / "regions.parquet"), "coco")
    [row] = iter_images(str(tmp_path / "regions.parquet"))
    assert len(row.regions) == len(json.loads(text)["annotations"])
    assert said(WHITE) in [region.caption for region in row.regions]
