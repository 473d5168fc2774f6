"""Draw regions on an image, trace their outlines, and format a mask tree as a list.

A pixel takes the color of the smallest region over it, so nested regions stay distinct; every outline has a white
border so that it is visible on any background. Numbers match the rows next to the picture.

Shapes: H, W of the image; h, w of the picture that is drawn.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ureca.regions.rle import Rle, decode_rle, rle_bbox

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

FILL = 0.16
"""Opacity of a region's color over the image."""
_GOLDEN_RATIO = 0.618034
_POLE_PX = 96
"""Longest side of the mask in which the number's position is searched."""


def region_color(index: int) -> Color:
    """Return the color of a region number; neighboring numbers differ in hue and lightness."""
    hue = (0.58 + index * _GOLDEN_RATIO) % 1.0
    lightness, saturation = ((0.42, 0.80), (0.54, 0.80), (0.33, 0.75))[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def to_css(color: Color) -> str:
    """Return "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def to_size(size: tuple[int, int], longest_px: int) -> tuple[int, int]:
    """Return (height, width) scaled so that the longest side is `longest_px`."""
    height, width = size
    scale = longest_px / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_regions(
    image: Pixels, segmentations: Mapping[int, Rle], *, longest_px: int = 800, numbers: bool = True
) -> Pixels:
    """Draw regions on the image (uint8 (H, W, 3), RGB): uint8 (h, w, 3), longest side `longest_px`.

    `segmentations` maps each region's number to its RLE; they are drawn in that order, so give larger ones first (the
    order of a mask tree).
    """
    height, width = to_size(image.shape[:2], longest_px)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    canvas = np.asarray(picture, dtype=np.float32).copy()
    masks = {number: _resized(rle, (height, width)) for number, rle in segmentations.items()}

    top = np.full((height, width), -1)
    for number, mask in masks.items():
        top[mask] = number
    for number in masks:
        own = top == number
        canvas[own] = (1 - FILL) * canvas[own] + FILL * np.array(region_color(number), dtype=np.float32)
    for number, mask in masks.items():
        inner = _eroded(mask, 2)
        canvas[_grown(mask) & ~mask] = 255
        canvas[mask & ~inner] = region_color(number)

    drawn = Image.fromarray(canvas.round().astype(np.uint8))
    if numbers:
        _write_numbers(drawn, top, list(masks))
    return np.asarray(drawn)


def outline(segmentation: Rle, *, longest_px: int = 400, tolerance_px: float = 0.7) -> str:
    """Return a region's outline, holes included, as the `d` attribute of an SVG path.

    Draw it with `fill-rule="evenodd"` in a viewBox of `to_size(size, longest_px)`.
    """
    soft, left, top = _shrunk_window(segmentation, to_size(tuple(segmentation["size"]), longest_px))
    soft = np.pad(soft, 1)
    lines: Any = contour_generator(z=soft).lines(127.5)
    if not lines:  # thinner than a pixel at this size: outline the unscaled pixels
        lines = contour_generator(z=(soft > 0) * 255.0).lines(127.5)
    parts = []
    for line in lines:
        line = line + (left - 0.5, top - 0.5)  # subtract the padding, add half a pixel
        points = _simplified(line, tolerance_px)
        if len(points) < 4:  # a sliver within the tolerance of a line
            points = line
        if len(points) >= 4:
            parts.append("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points[:-1]) + "Z")
    return "".join(parts)


def nested_list(parents: Sequence[int], rows: Sequence[str]) -> str:
    """Return a forest as nested HTML lists. `rows` are already HTML; parents (-1 = none) precede their children."""
    if len(parents) != len(rows) or any(parent >= index for index, parent in enumerate(parents)):
        raise ValueError("each row needs a parent that precedes it, or -1")
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(parents):
        children.setdefault(parent, []).append(index)

    def listed(parent: int) -> str:
        items = "".join(f"<li>{rows[index]}{listed(index)}</li>" for index in children.get(parent, []))
        return f"<ul>{items}</ul>" if items else ""

    return listed(-1)


def _shrunk_window(rle: Rle, size: tuple[int, int]) -> tuple[NDArray[np.float64], int, int]:
    """Return the window of the mask, scaled to `size`, that holds the region, 0..255, and its left and top.

    For a large image with a hundred small regions, nothing else is computed.
    """
    scale_y, scale_x = size[0] / rle["size"][0], size[1] / rle["size"][1]
    x, y, width, height = rle_bbox(rle)
    left, top = math.floor(x * scale_x), math.floor(y * scale_y)
    right, bottom = min(size[1], math.ceil((x + width) * scale_x)), min(size[0], math.ceil((y + height) * scale_y))
    box = left / scale_x, top / scale_y, right / scale_x, bottom / scale_y
    first_x, first_y = math.floor(box[0]), math.floor(box[1])
    window = decode_rle(rle)[first_y : math.ceil(box[3]), first_x : math.ceil(box[2])]
    inside = Image.fromarray(window.astype(np.uint8) * 255).resize(
        (right - left, bottom - top),
        Image.Resampling.BOX,
        box=(
            box[0] - first_x,
            box[1] - first_y,
            min(box[2] - first_x, window.shape[1]),
            min(box[3] - first_y, window.shape[0]),
        ),
    )
    return np.asarray(inside, dtype=np.float64), left, top


def _resized(rle: Rle, size: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = size
    mask = Image.fromarray(decode_rle(rle).astype(np.uint8) * 255)
    soft = np.asarray(mask.resize((width, height), Image.Resampling.BILINEAR))
    hard = soft >= 128
    return hard if hard.any() else soft > 0


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | mask


def _eroded(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    for _ in range(times):
        mask = ~_grown(~mask)
    return mask


def _write_numbers(picture: Image.Image, top: NDArray[np.int_], numbers: Sequence[int]) -> None:
    """Draw badges at the innermost position of each region's pixels; small regions first, because they have fewer
    choices."""
    draw = ImageDraw.Draw(picture)
    font_px = max(12, round(max(picture.size) / 36))
    font = ImageFont.load_default(font_px)
    step = max(1, -(-max(top.shape) // _POLE_PX))
    coarse = top[step // 2 :: step, step // 2 :: step]
    taken = np.zeros(coarse.shape, dtype=bool)
    areas = {number: int((top == number).sum()) for number in numbers}
    for number in sorted(numbers, key=lambda each: areas[each]):
        if not areas[number]:
            continue  # fully covered by regions inside it; its row still has the number
        row, column = _innermost(coarse == number, taken) or _any_pixel(top == number, step)
        half_w, half_h = font_px * (0.32 * len(str(number)) + 0.25), font_px * 0.62
        x = min(max((column + 0.5) * step, half_w), picture.width - half_w - 1)
        y = min(max((row + 0.5) * step, half_h), picture.height - half_h - 1)
        box = (x - half_w, y - half_h, x + half_w, y + half_h)
        draw.rounded_rectangle(box, radius=half_h * 0.6, fill=region_color(number), outline="white", width=1)
        draw.text(
            (x, y),
            str(number),
            fill="white",
            font=font,
            anchor="mm",
            stroke_width=1,
            stroke_fill=(0, 0, 0, 90),
        )
        reach_w, reach_h = int(2 * half_w / step) + 1, int(2 * half_h / step) + 1
        taken[max(0, row - reach_h) : row + reach_h + 1, max(0, column - reach_w) : column + reach_w + 1] = True


def _innermost(own: NDArray[np.bool_], taken: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Return (row, column) of the pixel farthest from the region's edge, avoiding taken positions if possible."""
    if not own.any():
        return None
    depth = np.zeros(own.shape, dtype=np.int32)
    left = own
    while left.any():
        depth += left
        padded = np.pad(left, 1)  # the image's border is an edge too
        left = _eroded(padded, 1)[1:-1, 1:-1]
    free = np.where(taken, 0, depth)
    row, column = np.unravel_index(int((free if free.any() else depth).argmax()), own.shape)
    return int(row), int(column)


def _any_pixel(own: NDArray[np.bool_], step: int) -> tuple[int, int]:
    rows, columns = np.nonzero(own)
    middle = len(rows) // 2
    return int(rows[middle]) // step, int(columns[middle]) // step


def _simplified(line: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Ramer-Douglas-Peucker: the fewest points of a line (N, 2) that keep it within `tolerance`."""
    keep = np.zeros(len(line), dtype=bool)
    keep[[0, -1]] = True
    open_spans = [(0, len(line) - 1)]
    while open_spans:
        first, last = open_spans.pop()
        if last - first < 2:
            continue
        start, chord = line[first], line[last] - line[first]
        offsets = line[first + 1 : last] - start
        length = float(np.hypot(*chord))
        if length > 0:
            distance = np.abs(chord[0] * offsets[:, 1] - chord[1] * offsets[:, 0]) / length
        else:  # a closed line begins and ends at one point
            distance = np.hypot(offsets[:, 0], offsets[:, 1])
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            keep[middle] = True
            open_spans += [(first, middle), (middle, last)]
    simplified: NDArray[np.float64] = line[keep]
    return simplified
