"""Names of colors: a table from RGB to the vocabulary's shades, and the one or two that a region shows.

The table assigns each of 32x32x32 RGB cells the nearest shade in OKLab (Björn Ottosson, 2020). The two color axes are
stretched, because a tint is named long before it is as far from gray as the pure color. A few additional centers stand
for muted colors common in photos (skin, wood, leaves, night sky). Neighboring shades vote for each other, so that a
surface whose pixels fall on both sides of a border still gets one name. Black, gray and white have slightly less weight
than colors, because of shadow and glare.
"""

from functools import cache

import numpy as np

from ureca.attributes.vocabulary import SHADES, base_color

SHADE_NAMES: tuple[str, ...] = tuple(SHADES)

_FURTHER_CENTERS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("black", (0, 0, 0)),
    ("black", (38, 34, 32)),
    ("white", (255, 255, 255)),
    ("white", (228, 228, 226)),
    ("light pink", (236, 200, 188)),
    ("light brown", (210, 174, 146)),
    ("light brown", (166, 142, 112)),
    ("light brown", (190, 136, 80)),
    ("brown", (150, 108, 78)),
    ("brown", (98, 78, 54)),
    ("orange", (198, 92, 58)),
    ("orange", (216, 140, 76)),
    ("green", (124, 128, 66)),
    ("dark green", (70, 76, 40)),
    ("dark green", (8, 46, 36)),
    ("dark blue", (48, 62, 96)),
    ("dark blue", (34, 26, 66)),
)

SECOND_COLOR_SHARE = 0.18
"""Minimum fraction of a region's pixels for its second color."""

_STRETCH = 1.7
_VOTE_WIDTH = 0.1  # distance over which shades vote for each other


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert RGB (..., 3) in 0..255 to OKLab float64 (..., 3): lightness 0..1, two color axes of about -0.3..0.3."""
    value = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_cones.T) @ to_lab.T


@cache
def _table() -> np.ndarray:
    """Return uint8 (32768,): index into SHADE_NAMES of each RGB cell."""
    centers = [(name, rgb) for name, rgb in SHADES.items()] + list(_FURTHER_CENTERS)
    steps = np.arange(32) * 8 + 4
    cells = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    distances = _distances(cells, np.array([rgb for _, rgb in centers]))
    names = np.array([SHADE_NAMES.index(name) for name, _ in centers], dtype=np.uint8)
    return names[np.argmin(distances, axis=1)]


@cache
def _votes() -> np.ndarray:
    """Return float64 (S, S): vote of a pixel of one shade for another, 1 on the diagonal."""
    centers = np.array(list(SHADES.values()))
    return np.exp(-((_distances(centers, centers) / _VOTE_WIDTH) ** 2))


@cache
def _shade_weights() -> np.ndarray:
    """Return float64 (S,): weight of a pixel of each shade when the main color is selected."""
    return np.array([0.75 if base_color(name) in ("black", "gray", "white") else 1.0 for name in SHADE_NAMES])


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return float64 (len(a), len(b)): distances of RGB colors, in OKLab with stretched color axes."""
    difference = to_oklab(a)[:, None, :] - to_oklab(b)[None, :, :]
    return np.sqrt((difference**2 * (1.0, _STRETCH**2, _STRETCH**2)).sum(-1))


def shade_counts(pixels: np.ndarray) -> np.ndarray:
    """Count the pixels of each shade, int64 (S,), ordered as SHADE_NAMES; `pixels` is uint8 (P, 3), RGB."""
    cells = pixels.astype(np.int32) >> 3
    return np.bincount(_table()[(cells[:, 0] << 10) | (cells[:, 1] << 5) | cells[:, 2]], minlength=len(SHADES))


def name_colors(counts: np.ndarray) -> tuple[str, str | None]:
    """Return the color of most pixels, and a second one if it covers SECOND_COLOR_SHARE of them.

    The second differs from the first in more than "dark" or "light".
    """
    votes = _votes()
    first = int(np.argmax(votes @ (counts * _shade_weights())))
    other = np.array([base_color(name) != base_color(SHADE_NAMES[first]) for name in SHADE_NAMES])
    rest = counts * other * (1 - votes[first])
    second = int(np.argmax(votes @ rest))
    if rest @ votes[second] >= SECOND_COLOR_SHARE * counts.sum() and other[second]:
        return SHADE_NAMES[first], SHADE_NAMES[second]
    return SHADE_NAMES[first], None


def color_features(counts: np.ndarray) -> np.ndarray:
    """Return float64 (S,) of length 1: fractions of the shades, spread to their neighbors, to compare regions."""
    spread = np.sqrt(_votes() @ (counts / counts.sum()))
    return spread / np.linalg.norm(spread)
