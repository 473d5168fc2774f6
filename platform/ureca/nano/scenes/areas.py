"""Background areas: sky over grass, a wall over a floor, a strip of water; each is a region.

An area's region is its visible part, without the things in front of it, so nothing in the image is part of an area.
Shapes: H rows, W columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from ureca.attributes.vocabulary import COLORS, SHADES
from ureca.nano.scenes.paint import PLAIN, Coat, Texture, color_distance

_ANY_LIGHT = ("white", "light gray", "light yellow", "light pink", "light green", "light blue", "light brown", "gray")
_ANY_DARK = ("dark blue", "dark green", "dark gray", "brown", "dark red", "dark purple", "black", "dark teal")

AREA_COLORS: dict[str, tuple[str, ...]] = {
    "sky": ("light blue", "blue", "dark blue", "light gray", "light purple", "light pink", "black"),
    "wall": (*_ANY_LIGHT, *_ANY_DARK),
    "curtain": (*_ANY_LIGHT, *_ANY_DARK),
    "hill": ("green", "dark green", "light brown", "gray", "light purple"),
    "floor": ("brown", "light brown", "dark gray", "light gray", "white", "dark red"),
    "grass": ("green", "dark green", "light green"),
    "sand": ("light yellow", "light brown", "yellow"),
    "snow": ("white", "light gray", "light blue"),
    "water": ("blue", "dark blue", "teal", "dark teal", "light teal"),
    "road": ("dark gray", "gray", "black"),
    "rug": (*_ANY_LIGHT, *_ANY_DARK),
}
"""Kind of area -> the colors it may have."""

AREA_NAMES = tuple(AREA_COLORS)

GROUNDS = ("floor", "grass", "sand", "snow", "road", "rug", "hill")
"""Areas that things stand on."""

_LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("", "floor"),
    ("", "grass"),
    ("", "water"),
    ("curtain", ""),
    ("sky", "grass"),
    ("sky", "sand"),
    ("sky", "water"),
    ("sky", "snow"),
    ("wall", "floor"),
    ("wall", "floor"),
    ("sky", "hill", "grass"),
    ("sky", "water", "sand"),
    ("wall", "floor", "rug"),
    ("sky", "grass", "road"),
)
"""Areas from top to bottom; "" leaves the backdrop, which is no region. A curtain hangs at a side."""

_WAVY = ("hill", "water", "grass", "sand", "snow")
_MIN_COLORS_LEFT = 6
_TEXTURED_SHARE = 0.4


@dataclass(frozen=True)
class Areas:
    """`owner` is uint8 (H, W): 0 = backdrop, k + 1 = area k."""

    owner: np.ndarray
    names: tuple[str, ...]
    coats: tuple[Coat, ...]


def no_areas(height: int, width: int) -> Areas:
    return Areas(np.zeros((height, width), np.uint8), (), ())


def draw_areas(rng: Generator, height: int, width: int) -> Areas:
    """One to three areas; at least six colors stay far from all of theirs."""
    layout = _LAYOUTS[int(rng.integers(len(_LAYOUTS)))]
    names = tuple(name for name in layout if name)
    owner = np.zeros((height, width), np.uint8)
    label = 0
    if layout[0] == "curtain":
        cut = round(width * rng.uniform(0.25, 0.45))
        owner[:, :cut] = 1
        if rng.random() < 0.5:
            owner = np.ascontiguousarray(owner[:, ::-1])
    else:
        borders = _borders(rng, len(layout))
        x = np.linspace(-0.5, 0.5, width)
        y = np.arange(height)[:, None]
        for position, name in enumerate(layout):
            top = np.zeros(width)
            if position:
                tilt, swell = rng.uniform(-0.06, 0.06), rng.uniform(0.01, 0.04) if name in _WAVY else 0.0
                waves = swell * np.sin(2 * np.pi * (rng.uniform(0.8, 2.5) * x + rng.random()))
                top = height * (borders[position - 1] + tilt * x + waves)
            label += bool(name)
            owner[y >= np.rint(top)] = label if name else 0
    while True:
        coats = tuple(_coat(rng, name) for name in names)
        if _fit_together(coats) and len(colors_apart(coats)) >= _MIN_COLORS_LEFT:
            return Areas(owner, names, coats)


def colors_apart(coats: tuple[Coat, ...]) -> list[str]:
    """Colors for things that stand out from all of the areas."""
    return [
        name
        for name, rgb in COLORS.items()
        if all(
            color_distance(rgb, SHADES[coat.color]) > 90
            and (not coat.texture.second_color or color_distance(rgb, SHADES[coat.texture.second_color]) > 60)
            for coat in coats
        )
    ]


def _borders(rng: Generator, count: int) -> list[float]:
    if count == 2:
        return [rng.uniform(0.4, 0.72)]
    first = rng.uniform(0.28, 0.4)
    return [first, first + rng.uniform(0.24, 0.34)]


def _coat(rng: Generator, name: str) -> Coat:
    color = str(rng.choice(AREA_COLORS[name]))
    texture = PLAIN
    if rng.random() < _TEXTURED_SHARE:
        pattern = str(rng.choice(["striped", "checkered", "dotted", "speckled"]))
        distances = {other: color_distance(rgb, SHADES[color]) for other, rgb in SHADES.items()}
        marks = [other for other, distance in distances.items() if 105 < distance < 170]
        texture = Texture(pattern, str(rng.choice(marks)), int(rng.integers(3)))
    return Coat(color, texture, rng.uniform(80, 125))


def _fit_together(coats: tuple[Coat, ...]) -> bool:
    return all(
        color_distance(SHADES[one.color], SHADES[other.color]) > 85
        for one, other in zip(coats, coats[1:], strict=False)
    )
