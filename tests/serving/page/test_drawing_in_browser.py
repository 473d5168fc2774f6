"""Boxes and polygons on the page, and masks as its script reads them."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect
from pycocotools import mask as coco_mask
from support.page_driver import RED, WHITE, click, give_squares, on_screen, region_of, said, wait_for_caption

from ureca.regions.rle import Rle, encode_mask

pytestmark = pytest.mark.slow


def test_a_box_is_drawn_by_a_drag_or_by_two_corners(page):
    give_squares(page)
    page.get_by_role("button", name="Box").click()
    page.mouse.move(*on_screen(page, 30, 10))
    page.mouse.down()
    page.mouse.move(*on_screen(page, 10, 50), steps=3)
    expect(page.locator(".draft .line")).to_be_visible()
    page.mouse.up()
    wait_for_caption(page, "unique 800 at 10,10,20,40")
    expect(page.locator("#status")).to_have_text(re.compile(r"Region \d+ was added\."))
    expect(page.get_by_role("button", name="Pick")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Box").click()
    click(page, 110, 110)
    expect(page.locator("#hint")).to_have_text("Now the opposite corner.")
    click(page, 120, 130)
    wait_for_caption(page, "unique 200 at 110,110,10,20")
    expect(page.locator("#facts")).to_contain_text(f"part of {region_of(page, WHITE)}")


def test_a_drawing_that_is_nearly_a_region_is_that_region(page):
    give_squares(page)
    num_regions = page.get_by_role("treeitem").count()
    page.get_by_role("button", name="Box").click()
    click(page, 60, 60)
    click(page, 180, 180)
    wait_for_caption(page, said(RED))
    expect(page.locator("#status")).to_have_text(f"Your drawing nearly equals region {region_of(page, RED)}.")
    expect(page.get_by_role("treeitem")).to_have_count(num_regions)


@pytest.mark.parametrize("end", ["Enter", "double click", "first corner", "button"])
def test_a_polygon_is_drawn_corner_by_corner(page, end):
    give_squares(page)
    page.get_by_role("button", name="Polygon").click()
    corners = [(10, 10), (50, 10), (50, 40), (10, 40)]
    for place in corners[:-1]:
        click(page, *place)
    if end == "double click":
        page.mouse.dblclick(*on_screen(page, *corners[-1]))
    else:
        click(page, *corners[-1])
        if end == "Enter":
            page.keyboard.press("Enter")
        elif end == "button":
            page.get_by_role("button", name="Close", exact=True).click()
        else:
            click(page, *corners[0])
    wait_for_caption(page, "unique 1200 at 10,10,40,30")


def test_escape_takes_a_drawing_back(page, backend):
    give_squares(page)
    page.get_by_role("button", name="Polygon").click()
    click(page, 10, 10)
    click(page, 50, 10)
    page.keyboard.press("Enter")  # two corners are no polygon
    expect(page.locator("#hint")).to_have_text("Set at least three corners.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Polygon")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Pick")).to_have_attribute("aria-pressed", "true")
    assert backend.calls == []


MASKS = {
    "noise": np.random.default_rng(0).random((23, 31)) < 0.5,
    "sparse": np.random.default_rng(1).random((40, 7)) < 0.04,
    "full": np.ones((5, 9), bool),
    "one pixel": np.pad(np.ones((1, 1), bool), ((2, 0), (0, 3))),
    "ring": np.pad(np.pad(np.zeros((4, 4), bool), 3, constant_values=True), 2),
    "corners that touch": np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool),
    "long runs": np.kron(np.random.default_rng(2).random((3, 5)) < 0.5, np.ones((70, 90))) > 0,
}


def test_masks_are_read_as_pycocotools_reads_them(page):
    for name, mask in MASKS.items():
        inside, filled = read_in_browser(page, encode_mask(mask))
        assert np.array_equal(np.reshape(inside, mask.shape), coco_mask.decode(encode_mask(mask)).astype(bool)), name
        assert np.array_equal(np.reshape(filled, mask.shape), mask), name


def read_in_browser(page, rle: Rle) -> tuple[list[bool], list[bool]]:
    """For each pixel in rows, whether it is inside by the runs, and by the outline."""
    return page.evaluate(
        """async (rle) => {
            const { contains, outline, runsOf } = await import("/page/rle.js");
            const [height, width] = rle.size, runs = runsOf(rle), path = new Path2D(outline(runs, height));
            const context = new OffscreenCanvas(1, 1).getContext("2d"), inside = [], filled = [];
            for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
                inside.push(contains(runs, height, x, y));
                filled.push(context.isPointInPath(path, x + 0.5, y + 0.5, "evenodd"));
            }
            return [inside, filled];
        }""",
        dict(rle),
    )
