"""Colors of a scene: background, regions with their textures, light and shadow.

Light and noise stay within a few percent, so that a region's most common color is its named one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from ureca.attributes.vocabulary import COLORS, SHADES

BACKGROUNDS: tuple[tuple[int, int, int], ...] = (
    (226, 232, 238),
    (236, 228, 212),
    (214, 226, 210),
    (232, 218, 226),
    (206, 214, 226),
    (58, 66, 78),
    (70, 62, 66),
    (54, 70, 64),
    (46, 52, 70),
    (186, 196, 186),
    (200, 190, 178),
)
"""Muted light and dark shades, RGB."""


@dataclass(frozen=True)
class Backdrop:
    """`pixels` is float32 (H, W, 3), `mean_rgb` its shade."""

    pixels: np.ndarray
    mean_rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Texture:
    """A pattern by its vocabulary name, the color of its marks, and the direction of its stripes (0, 1, 2)."""

    name: str
    second_color: str = ""
    direction: int = 0


PLAIN = Texture("smooth")


@dataclass(frozen=True)
class Coat:
    """Paint of a region's pixels; `scale` is the thing's height in px and sets the texture's."""

    color: str
    texture: Texture
    scale: float


def color_distance(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Euclidean distance in RGB, 0 to 442."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def paint_background(rng: Generator, height: int, width: int) -> Backdrop:
    """A muted shade with a slope of light, soft clouds, and stripes in some scenes."""
    shade = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    light = 9.0 * (np.cos(angle) * x + np.sin(angle) * y)
    coarse = rng.normal(0, 1, (6, 6)).astype(np.float32)
    clouds = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    light = light + rng.uniform(2, 6) * clouds
    if rng.random() < 0.35:
        turn = rng.uniform(0, np.pi)
        light = light + 3.5 * np.sin((np.cos(turn) * x + np.sin(turn) * y) * rng.uniform(14, 40))
    pixels = np.asarray(shade, np.float32) + light[:, :, None].astype(np.float32)
    return Backdrop(pixels, shade)


def paint_areas(rng: Generator, backdrop: Backdrop, owner: np.ndarray, coats: Sequence[Coat]) -> Backdrop:
    """The backdrop with areas on it; `owner` is uint8 (H, W), 0 = none, k + 1 = area k."""
    if not coats:
        return backdrop
    light = backdrop.pixels - np.asarray(backdrop.mean_rgb, np.float32)
    table = np.stack(
        [
            np.zeros(3, np.float32),
            *(np.asarray(SHADES[coat.color], np.float32) + rng.uniform(-4, 4, 3).astype(np.float32) for coat in coats),
        ]
    )
    pixels = table[owner]
    for index, coat in enumerate(coats):
        if coat.texture.name != "smooth":
            _paint_texture(rng, pixels, owner, index + 1, coat)
    pixels = np.where((owner > 0)[:, :, None], pixels + 0.4 * light, backdrop.pixels)
    return Backdrop(pixels, backdrop.mean_rgb)


def paint_regions(
    rng: Generator,
    backdrop: Backdrop,
    owner: np.ndarray,
    coats: Sequence[Coat],
) -> np.ndarray:
    """uint8 (H, W, 3) from the owner of each pixel (int16 (H, W), 0 = background, k + 1 = piece k)."""
    height, width = owner.shape
    jitter: dict[str, np.ndarray] = {}
    for coat in coats:
        if coat.color not in jitter:
            jitter[coat.color] = np.asarray(COLORS[coat.color], np.float32) + rng.uniform(-7, 7, 3).astype(np.float32)
    table = np.stack([np.zeros(3, np.float32), *(jitter[coat.color] for coat in coats)])
    pixels = table[owner]
    for index, coat in enumerate(coats):
        if coat.texture.name != "smooth":
            _paint_texture(rng, pixels, owner, index + 1, coat)

    thing = owner > 0
    pixels = np.where(thing[:, :, None], pixels, backdrop.pixels)
    light = np.ones((height, width), np.float32)
    light += np.linspace(0.03, -0.03, height, dtype=np.float32)[:, None]
    edge = np.zeros((height, width), bool)
    edge[:-1] |= owner[:-1] != owner[1:]
    edge[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    light[edge & thing] *= 0.82
    shadow = np.zeros((height, width), bool)
    shadow[4:, 3:] = thing[:-4, :-3]
    light[shadow & ~thing] *= 0.84
    pixels *= light[:, :, None]
    pixels += rng.normal(0, 2.2, (height, width, 1)).astype(np.float32)
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


def _paint_texture(rng: Generator, pixels: np.ndarray, owner: np.ndarray, label: int, coat: Coat) -> None:
    """Paint the second color over 15 to 38 percent of a region, in place."""
    where = owner == label
    if not where.any():
        return
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    where = where[box]
    height, width = where.shape
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    pitch = int(np.clip(round(coat.scale * 0.1), 7, 13))
    if coat.texture.name == "striped":
        along = (x + y, x + 0 * y, y + 0 * x)[coat.texture.direction]
        pattern = along % pitch < round(0.33 * pitch)
    elif coat.texture.name == "checkered":
        pitch = max(10, pitch)
        pattern = (x % pitch < 2) | (y % pitch < 2)
    elif coat.texture.name == "dotted":
        half = (pitch - 1) / 2
        pattern = (x % pitch - half) ** 2 + (y % pitch - half) ** 2 <= (0.26 * pitch) ** 2
    else:
        grains = rng.random((height // 2 + 1, width // 2 + 1)) < 0.24
        pattern = grains.repeat(2, 0).repeat(2, 1)[:height, :width]
    pixels[box][where & pattern] = SHADES[coat.texture.second_color]
