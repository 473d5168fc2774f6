"""Name the shape of a mask.

The mask is rotated, moved and stretched until its second moments are those of a disc. Every ellipse becomes a disc,
every rectangle a square, and every triangle equilateral. The remaining outline is a distance per direction, r(θ); the
strengths of its first harmonics identify it at any rotation.

    disc 0, 0, 0 …      square: the 4th and 8th      triangle: the 3rd and 6th      five-pointed star: the 5th

The amount of stretching separates round from oval, square from rectangular, and identifies thin shapes. Shapes: A
directions, R radii.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

THIN = 2.9
"""Smallest elongation (length over width) that is called thin."""

_SHAPE_PX = 128  # longest side at which shape is measured
_STRETCHED = 1.22  # round | oval, square | rectangular
_FAR = 0.035  # largest distance of harmonics to the nearest shape; more is irregular
_PIXEL = 0.15  # further distance allowed per pixel of mean radius (small masks are staircases)
_NUM_ANGLES, _NUM_RADII, _MAX_RADIUS = 64, 72, 3.6
_NUM_HARMONICS = 8


@dataclass(frozen=True)
class Outline:
    """Geometry of one mask.

    elongation: length over width, at least 1. harmonics: float64 (8,), strengths of r(θ) over its mean.
    fill: share of the inside of r(θ) that is mask, below 1 for holes and bays. hole: radius of the empty
    center over the outer radius, in the direction where it is smallest.
    """

    elongation: float
    harmonics: np.ndarray
    fill: float
    hole: float


@cache
def _rays() -> tuple[np.ndarray, np.ndarray]:
    """Return points (A, R, 2) around the origin, and their radii (R,)."""
    angles = np.arange(_NUM_ANGLES) * 2 * np.pi / _NUM_ANGLES
    radii = (np.arange(_NUM_RADII) + 0.5) * _MAX_RADIUS / _NUM_RADII
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return directions[:, None, :] * radii[None, :, None], radii


@cache
def _templates() -> dict[str, np.ndarray]:
    angles = np.arange(720) * 2 * np.pi / 720
    point, valley = 0.55, 0.26
    position = np.abs((angles / (2 * np.pi / 5)) % 1 - 0.5) * 2 * np.pi / 5
    # A star's edge is a straight line from its point (position pi/5) to its valley (0), in polar form.
    top = np.array([point * np.cos(np.pi / 5), point * np.sin(np.pi / 5)])
    edge = top - np.array([valley, 0.0])
    star = valley * edge[1] / (edge[1] * np.cos(position) - edge[0] * np.sin(position))
    profiles = {
        "round": np.ones(720),
        "square": 1 / np.maximum(np.abs(np.cos(angles)), np.abs(np.sin(angles))),
        "triangular": 1 / np.cos((angles % (2 * np.pi / 3)) - np.pi / 3),
        "star-shaped": star,
    }
    return {name: _harmonics(profile) for name, profile in profiles.items()}


def _harmonics(profile: np.ndarray) -> np.ndarray:
    strengths = np.abs(np.fft.rfft(profile))
    return strengths[1 : _NUM_HARMONICS + 1] / strengths[0]


def reduced(mask: np.ndarray) -> np.ndarray:
    """Crop a mask to its box and subsample it to at most 128 pixels a side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    step = max(1, -(-max(inside.shape) // _SHAPE_PX))
    small = inside[::step, ::step]
    return small if small.any() else inside


def shape_of(mask: np.ndarray) -> str:
    """Name the shape of a bool (H, W) mask with at least one pixel set."""
    small = reduced(mask)
    return name_shape(outline(small), int(small.sum()))


def outline(mask: np.ndarray) -> Outline:
    """Measure a bool (H, W) mask with at least one pixel set."""
    ys, xs = np.nonzero(mask)
    cy, cx = ys.mean(), xs.mean()
    dy, dx = ys - cy, xs - cx
    # A pixel is a square of variance 1/12, not a point.
    covariance = np.array([[(dy * dy).mean() + 1 / 12, (dy * dx).mean()], [0.0, (dx * dx).mean() + 1 / 12]])
    covariance[1, 0] = covariance[0, 1]
    variances, axes = np.linalg.eigh(covariance)
    stretch = axes * np.sqrt(variances)  # a disc of standard deviation 1 (radius 2) -> the mask
    points, radii = _rays()
    y, x = np.moveaxis(np.rint(points @ stretch.T + (cy, cx)).astype(np.intp), -1, 0)
    height, width = mask.shape
    within = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    inside = np.zeros(within.shape, dtype=bool)
    inside[within] = mask[y[within], x[within]]
    outer = np.where(inside.any(1), _NUM_RADII - np.argmax(inside[:, ::-1], axis=1), 0)
    inner = np.where(inside.any(1), np.argmax(inside, axis=1), 0)
    below_outer = np.arange(_NUM_RADII) < outer[:, None]
    area = (below_outer * radii).sum()
    return Outline(
        elongation=float(np.sqrt(variances[1] / variances[0])),
        harmonics=_harmonics(np.maximum(outer, 1).astype(np.float64)),
        fill=float((inside * radii).sum() / max(area, 1e-9)),
        hole=float((inner / np.maximum(outer, 1)).min()),
    )


def name_shape(geometry: Outline, area_px: int) -> str:
    """Return the vocabulary's word for a measured outline; `area_px` is the area of the measured mask."""
    radius_px = np.sqrt(area_px / np.pi)
    far = _FAR + _PIXEL / radius_px
    if geometry.hole > 0.25 and np.linalg.norm(geometry.harmonics) < 1.5 * far:
        return "ring-shaped"
    if geometry.elongation >= THIN:
        return "thin"
    distances = {
        name: float(np.linalg.norm(geometry.harmonics - harmonics)) for name, harmonics in _templates().items()
    }
    name = min(distances, key=distances.__getitem__)
    if distances[name] > far or geometry.fill < 0.93:
        return "irregular"
    if geometry.elongation >= _STRETCHED:
        return {"round": "oval", "square": "rectangular"}.get(name, name)
    return name
