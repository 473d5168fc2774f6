"""Names of shapes."""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ureca.attributes.shapes import name_shape, outline


def mask_of(draw: Callable[[ImageDraw.ImageDraw], None], side: int = 80) -> np.ndarray:
    image = Image.new("1", (side, side))
    draw(ImageDraw.Draw(image))
    return np.asarray(image)


def polygon(*points: tuple[float, float]) -> Callable[[ImageDraw.ImageDraw], None]:
    return lambda draw: draw.polygon(list(points), fill=1)


def ellipse(*box: float) -> Callable[[ImageDraw.ImageDraw], None]:
    return lambda draw: draw.ellipse(box, fill=1)


def box(*corners: float) -> Callable[[ImageDraw.ImageDraw], None]:
    return lambda draw: draw.rectangle(corners, fill=1)


def star(draw: ImageDraw.ImageDraw) -> None:
    radii = [30 if k % 2 == 0 else 14 for k in range(10)]
    draw.polygon([(40 + r * sin(pi * k / 5), 40 - r * cos(pi * k / 5)) for k, r in enumerate(radii)], fill=1)


def ring(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse((10, 10, 70, 70), fill=1)
    draw.ellipse((26, 26, 54, 54), fill=0)


def frame(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((5, 5, 75, 75), fill=1)
    draw.ellipse((20, 20, 60, 60), fill=0)


CASES = {
    "disc": (ellipse(10, 10, 60, 60), "round"),
    "small disc": (ellipse(10, 10, 22, 22), "round"),
    "lying ellipse": (ellipse(10, 20, 70, 50), "oval"),
    "square": (box(10, 10, 50, 50), "square"),
    "small square": (box(10, 10, 22, 22), "square"),
    "square on its corner": (polygon((40, 5), (75, 40), (40, 75), (5, 40)), "square"),
    "box": (box(10, 10, 30, 45), "rectangular"),
    "turned box": (polygon((20, 5), (60, 45), (40, 65), (0, 25)), "rectangular"),
    "rod": (box(10, 10, 15, 60), "thin"),
    "slanting rod": (polygon((5, 5), (10, 2), (70, 60), (65, 63)), "thin"),
    "triangle": (polygon((10, 60), (35, 10), (60, 60)), "triangular"),
    "right triangle": (polygon((10, 60), (10, 10), (40, 60)), "triangular"),
    "star": (star, "star-shaped"),
    "ring": (ring, "ring-shaped"),
    "frame with a round hole": (frame, "irregular"),
    "half disc": (lambda draw: draw.pieslice((10, 10, 70, 70), 180, 360, fill=1), "irregular"),
    "house": (polygon((10, 75), (10, 35), (40, 5), (70, 35), (70, 75)), "irregular"),
}


@pytest.mark.parametrize("case", CASES)
def test_name_shape_of_drawn_masks(case):
    draw, name = CASES[case]
    mask = mask_of(draw)
    assert name_shape(outline(mask), int(mask.sum())) == name


def test_outline_elongation_of_a_box_is_its_aspect_ratio():
    assert outline(mask_of(box(5, 30, 64, 49))).elongation == pytest.approx(60 / 20, rel=0.01)


@pytest.mark.parametrize("mask", [np.ones((1, 1), bool), np.ones((1, 9), bool), np.eye(7, dtype=bool)])
def test_name_shape_of_tiny_masks(mask):
    assert name_shape(outline(mask), int(mask.sum())) in ("square", "round", "thin", "irregular")
