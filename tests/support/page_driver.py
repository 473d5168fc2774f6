"""Common browser actions of the page's tests, on a picture of squares."""

import base64
import re
from typing import Any

from PIL import Image
from playwright.sync_api import expect

from support.request_images import encoded
from ureca.client.client import Client
from ureca.serving.settings import Limits

LIMITS = Limits(max_image_pixels=1_000_000, max_regions=64)
SIDE = 240
RED, WHITE = (60, 60, 120, 120), (100, 100, 40, 40)
"""x, y, width, height of the squares in `squares`."""


def squares() -> Image.Image:
    """A blue picture with a red square that holds a white one."""
    image = Image.new("RGB", (SIDE, SIDE), (20, 40, 200))
    for (x, y, width, height), color in ((RED, (220, 30, 30)), (WHITE, (250, 250, 250))):
        image.paste(color, (x, y, x + width, y + height))
    return image


def said(box: tuple[int, ...], ask: str = "unique") -> str:
    """Return the backend's caption of a box."""
    return f"{ask} {box[2] * box[3]} at {','.join(map(str, box))}"


def region_of(page: Any, box: tuple[int, ...]) -> str:
    """Id of the region of that box."""
    with Client(page.url) as client:
        return next(node["id"] for node in client.regions(squares()) if tuple(node["bbox"]) == box)


def give(page: Any, image: Image.Image, name: str = "squares.png", kind: str = "image/png", **options: object) -> None:
    """Choose a file."""
    data = base64.b64decode(encoded(image, kind.removeprefix("image/"), **options))
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})


def give_squares(page: Any) -> None:
    """Choose the picture of squares, and wait for its regions."""
    give(page, squares())
    expect(page.locator("#status")).to_have_text(re.compile("regions found"))


def on_screen(page: Any, x: float, y: float) -> tuple[float, float]:
    """Return the screen position of a pixel of the picture of squares."""
    box = page.locator("#stage img").bounding_box()
    return box["x"] + x * box["width"] / SIDE, box["y"] + y * box["height"] / SIDE


def click(page: Any, x: float, y: float) -> None:
    page.mouse.click(*on_screen(page, x, y))


def wait_for_caption(page: Any, text: str) -> None:
    expect(page.locator("#caption")).to_have_text(text)
    expect(page.locator("#caption")).to_have_attribute("aria-busy", "false")
