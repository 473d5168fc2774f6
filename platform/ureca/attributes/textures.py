"""Name the texture of a region from its autocorrelation.

A window well inside the region is reduced to one number per pixel: OKLab projected on the axis along which it varies
most, with slow changes of light removed. Its autocorrelation, without pixels outside the mask, separates the textures:

    striped     stays high along one direction
    checkered   a lattice of peaks; halfway to the next peak, along a band, still above zero
    dotted      a lattice of peaks; halfway to the next, below zero
    speckled    falls off within a few pixels and does not come back
    smooth      too little contrast to be seen, or only slow changes
    None        anything else

Shapes: W window side, L largest shift; the autocorrelation is (2L+1, 2L+1) with shift zero in the middle.
"""

from functools import cache

import numpy as np

from ureca.attributes.colors import to_oklab

WINDOW_PX = 56
MIN_PIXELS = 150
"""Regions with fewer usable pixels are called smooth: they are too small for a pattern."""

_MAX_SHIFT = 16
_PLAIN = 0.025  # standard deviation in OKLab up to which a surface is plain
_CONTRAST = 0.06  # and from which a pattern is seen
_LIGHT_PX = 19  # window for averaging the light


def name_texture(crop: np.ndarray, usable: np.ndarray) -> str | None:
    """Return the texture of the usable pixels of a crop; None if no word fits.

    `crop` is uint8 (H, W, 3), RGB; `usable` is bool (H, W).
    """
    rows, columns = _fullest_window(usable)
    mask = usable[rows, columns]
    if mask.sum() < MIN_PIXELS:
        return "smooth"
    signal = _one_channel(crop[rows, columns], mask)
    contrast = float(np.sqrt((signal[mask] ** 2).mean()))
    if contrast < _PLAIN:
        return "smooth"
    name = _name_correlation(_autocorrelation(signal, mask), 0.45 * float(np.sqrt(mask.sum())))
    if name == "smooth" or (contrast >= _CONTRAST and (name != "speckled" or _is_even(signal, mask))):
        return name
    return None


def _is_even(signal: np.ndarray, mask: np.ndarray) -> bool:
    """Return True if every quarter with enough pixels has about the window's contrast."""
    squares = np.stack([signal**2, mask.astype(np.float64)])
    halves = [part for rows in np.array_split(squares, 2, axis=1) for part in np.array_split(rows, 2, axis=2)]
    sums = np.array([part.sum((1, 2)) for part in halves])
    counted = sums[sums[:, 1] >= 0.1 * mask.sum()]
    return bool((counted[:, 0] / counted[:, 1]).min() >= 0.4 * sums[:, 0].sum() / sums[:, 1].sum())


def _fullest_window(usable: np.ndarray) -> tuple[slice, slice]:
    """Return the WINDOW_PX square with the most usable pixels."""
    height, width = usable.shape
    side_y, side_x = min(WINDOW_PX, height), min(WINDOW_PX, width)
    sums = np.zeros((height + 1, width + 1), dtype=np.int64)
    sums[1:, 1:] = usable.cumsum(0).cumsum(1)
    count = sums[side_y:, side_x:] - sums[:-side_y, side_x:] - sums[side_y:, :-side_x] + sums[:-side_y, :-side_x]
    y, x = np.unravel_index(int(np.argmax(count)), count.shape)
    return slice(int(y), int(y) + side_y), slice(int(x), int(x) + side_x)


def _one_channel(window: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return float64 (W, W), 0 outside the mask."""
    lab = to_oklab(window)
    lab -= lab[mask].mean(0)
    _, axes = np.linalg.eigh(np.cov(lab[mask].T))
    signal = np.where(mask, lab @ axes[:, -1], 0.0)
    signal -= _box_sum(signal) / np.maximum(_box_sum(mask.astype(np.float64)), 1)
    return np.where(mask, signal, 0.0)


def _box_sum(values: np.ndarray) -> np.ndarray:
    """Return the sum over a _LIGHT_PX square around each pixel, clipped at the border."""
    half = _LIGHT_PX // 2
    for axis in (0, 1):
        length = values.shape[axis]
        sums = np.insert(values.cumsum(axis), 0, 0.0, axis=axis)
        upper = np.minimum(np.arange(length) + half + 1, length)
        lower = np.maximum(np.arange(length) - half, 0)
        values = sums.take(upper, axis) - sums.take(lower, axis)
    return values


def _autocorrelation(signal: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return float64 (2L+1, 2L+1), 1 in the middle; 0 where too few pixels overlap."""
    size = WINDOW_PX + _MAX_SHIFT
    both = np.stack([signal, mask.astype(np.float64)])
    spectrum = np.fft.rfft2(both, s=(size, size))
    products, overlaps = np.fft.irfft2(np.abs(spectrum) ** 2, s=(size, size))
    shifts = np.arange(-_MAX_SHIFT, _MAX_SHIFT + 1)
    products, overlaps = products[np.ix_(shifts, shifts)], overlaps[np.ix_(shifts, shifts)]
    enough = overlaps > 0.15 * overlaps[_MAX_SHIFT, _MAX_SHIFT]
    correlation = np.where(enough, products / np.maximum(overlaps, 1.0), 0.0)
    return correlation / correlation[_MAX_SHIFT, _MAX_SHIFT]


@cache
def _directions() -> np.ndarray:
    """Return shifts (24, _MAX_SHIFT, 2) as (y, x), one row per direction over half a turn.

    They are indices into the autocorrelation, whose middle is shift zero.
    """
    angles = np.arange(24) * np.pi / 24
    steps = np.arange(1, _MAX_SHIFT + 1)
    lines = np.stack([np.outer(np.sin(angles), steps), np.outer(np.cos(angles), steps)], axis=-1)
    return np.rint(lines).astype(np.intp) + _MAX_SHIFT


def _name_correlation(correlation: np.ndarray, longest_period: float) -> str:
    """Name the pattern; a lattice of a longer period (in pixels) can't be distinguished from a few random spots."""
    lines = _directions()
    along = correlation[lines[..., 0], lines[..., 1]]  # (24, L)
    band = int(np.argmax(along[:, 2:11].min(1)))
    across = along[(band + 12) % 24, 5:]
    # An edge between two plain colors is also alike along one direction, but does not come back across it.
    if along[band, 2:11].min() > 0.55 and across.max() > max(0.35, across.min() + 0.3):
        return "striped"
    y, x = np.ogrid[-_MAX_SHIFT : _MAX_SHIFT + 1, -_MAX_SHIFT : _MAX_SHIFT + 1]
    distance = np.hypot(y, x)
    ring = np.where((distance >= 6) & (distance <= min(_MAX_SHIFT, longest_period)), correlation, -1.0)
    highest = ring.max()
    # The nearest of the peaks is one period away.
    peak = int(np.argmin(np.where(ring > 0.85 * highest, distance, np.inf)))
    half_y, half_x = (np.array(np.unravel_index(peak, ring.shape)) + _MAX_SHIFT) // 2
    halfway = correlation[half_y, half_x]
    if highest > 0.45 and halfway < highest - 0.2:
        # On a chessboard, halfway is near zero, but one field on, every color is inverted.
        return "checkered" if halfway > 0.08 or correlation.min() < -0.8 else "dotted"
    return "speckled" if along[:, 3].mean() < 0.2 else "smooth"
