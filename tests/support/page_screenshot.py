"""The picture of the page in docs/serving.md, from a service that runs:

make serve
PYTHONPATH=tests .venv/bin/python tests/support/page_screenshot.py http://localhost:8000 docs/page.png
"""

import sys

from PIL import Image
from playwright.sync_api import expect

from support.chromium import chromium


def take(url: str, path: str) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 790})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.get_by_role("button", name="Drawn car").click()
        expect(page.locator("#status")).to_contain_text("found")
        page.get_by_role("button", name="Caption all").click()
        expect(page.locator("#tree .text.soft")).to_have_count(0, timeout=300_000)
        page.get_by_role("treeitem").nth(2).locator(".row").first.click()
        page.mouse.move(0, 0)
        page.screenshot(path=path)
    with Image.open(path) as image:  # a few colors are enough for it
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    take(*sys.argv[1:])
