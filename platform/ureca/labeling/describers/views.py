"""Views of a region for a model: pictures that mark the region without covering it.

    image     the entire picture, the region outlined
    context   the region outlined within its parent, everything outside the parent blurred
    crop      the region cut out, everything outside blurred
    marks     several regions, each outlined in its own color and numbered

Source: URECA (arXiv 2504.05305) section 3 and figure 2. Deviations from the authors' code: crops have a margin, because
thin regions are unreadable without one; the blur scales with the picture; holes are outlined too; outlines are drawn at
the model's resolution, around the region instead of on it; a mark's number never covers a small region, and no other
region has the target's color.

Shapes: H, W of the image; h, w of the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import distance_transform_edt

from ureca.regions.rle import Rle, decode_rle, rle_bbox

DRAWING_VERSION = 1
"""Incremented whenever views are drawn differently; part of every prompt version."""

SMALLEST_PX = 224
"""Crops are enlarged to this longest side: endpoints refuse tiny pictures, and models see little in them."""

Color = tuple[int, int, int]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom exclusive."""

YELLOW: Color = (255, 255, 0)
BLUE: Color = (0, 70, 255)
_OTHERS: tuple[Color, ...] = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
    (0, 128, 128),
    (170, 110, 40),
    (128, 0, 0),
)
"""No color is similar to blue, and list neighbors differ clearly."""

_PLATE = 100_000
"""Weight of a plate's pixel when placing another plate: more than all regions together."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Cropping and drawing of views."""

    longest_px: int = 896
    """Longest side of a view; larger ones are scaled down."""
    margin: float = 0.1
    """Margin of a crop on each side, as a share of its box; at least `margin_px` (image pixels)."""
    margin_px: int = 16
    blur: float = 1 / 15
    """Standard deviation of the blur, as a share of the image's shorter side: 100 px of 1500."""
    context: Literal["parent", "top"] = "parent"
    """Region to cut the context around: the parent (the paper's text), or the top of the tree (its code)."""


def crop_view(image: np.ndarray, segmentation: Rle, config: ViewConfig) -> Image.Image:
    """Cut the region out of the image (uint8 (H, W, 3), RGB), everything outside blurred."""
    return _Cut(image, [segmentation], config, margin=True).blurred_outside(segmentation).picture()


def context_view(image: np.ndarray, segmentation: Rle, around: Rle, config: ViewConfig) -> Image.Image:
    """Outline the region in yellow within the region `around`, everything outside that one blurred."""
    cut = _Cut(image, [around], config, margin=True).blurred_outside(around)
    cut.outline(cut.mask(segmentation), YELLOW)
    return cut.picture()


def image_view(image: np.ndarray, segmentation: Rle, config: ViewConfig) -> Image.Image:
    """Outline the region in yellow in the entire image."""
    cut = _Cut(image, [], config, margin=False)
    cut.outline(cut.mask(segmentation), YELLOW)
    return cut.picture()


def marks_view(
    image: np.ndarray, segmentations: Sequence[Rle], config: ViewConfig, *, target_first: bool
) -> Image.Image:
    """Cut the part of the image that holds all regions, each outlined and numbered.

    With `target_first` the first region is 0 and blue, and the others count from 1. Otherwise all count from 1 and none
    stands out. (Set of marks, arXiv 2310.11441.)
    """
    cut = _Cut(image, segmentations, config, margin=True)
    others = segmentations[1:] if target_first else segmentations
    marks = [(str(number), rle, _OTHERS[(number - 1) % len(_OTHERS)]) for number, rle in enumerate(others, 1)]
    if target_first:
        marks.append(("0", segmentations[0], BLUE))  # drawn last, so no other outline crosses it
    masks = [cut.mask(rle) for _, rle, _ in marks]
    for mask, (_, _, color) in zip(masks, marks, strict=True):
        cut.outline(mask, color)
    cut.write_numbers([(text, mask, color) for mask, (text, _, color) in zip(masks, marks, strict=True)][::-1])
    return cut.picture()


class _Cut:
    """A part of the image at the size of the view, to draw on."""

    def __init__(self, image: np.ndarray, around: Sequence[Rle], config: ViewConfig, *, margin: bool) -> None:
        height, width = image.shape[:2]
        self._box = _box_around(around, (height, width), config if margin else None)
        left, top, right, bottom = self._box
        longest = max(right - left, bottom - top)
        scale = min(max(longest, SMALLEST_PX), config.longest_px) / longest
        self._size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        self._sigma_px = config.blur * min(height, width) * scale
        self._line_px = max(2, round(max(self._size) / 300))
        shrunk = Image.fromarray(image[top:bottom, left:right]).resize(self._size, Image.Resampling.LANCZOS)
        self._pixels = np.array(shrunk)

    def picture(self) -> Image.Image:
        return Image.fromarray(self._pixels)

    def mask(self, segmentation: Rle) -> Mask:
        """Return the region's pixels in this view, bool (h, w); at least one if the region has any in the cut."""
        left, top, right, bottom = self._box
        # Transposed: masks are decoded by columns, and transposing millions of pixels would dominate the cost.
        columns = np.ascontiguousarray(decode_rle(segmentation).T[left:right, top:bottom]).view(np.uint8)
        resample = Image.Resampling.BOX if self._shrinks else Image.Resampling.BILINEAR
        hard = np.asarray(Image.fromarray(columns).resize(self._size[::-1], resample)) > 0
        if not hard.any():
            hard = np.asarray(Image.fromarray(columns * 255).resize(self._size[::-1], resample)) > 0
        return np.ascontiguousarray(hard.T)

    @property
    def _shrinks(self) -> bool:
        return self._size[0] < self._box[2] - self._box[0]

    def blurred_outside(self, segmentation: Rle) -> "_Cut":
        blurred = np.asarray(self.picture().filter(ImageFilter.GaussianBlur(self._sigma_px)))
        self._pixels = np.where(self.mask(segmentation)[..., None], self._pixels, blurred)
        return self

    def outline(self, mask: Mask, color: Color) -> None:
        """Draw a line around the region with a thin dark edge, visible on any background."""
        line = _grown(mask, self._line_px)
        self._pixels[_grown(line, 1) & ~line] = 0
        frame = np.ones_like(mask)
        frame[self._line_px : -self._line_px, self._line_px : -self._line_px] = False
        self._pixels[(line & ~mask) | (mask & frame)] = (
            color  # inside only where the region ends at the picture's border
        )

    def write_numbers(self, marks: Sequence[tuple[str, Mask, Color]]) -> None:
        """Draw number plates inside regions with enough room, next to the others."""
        picture = self.picture()
        draw = ImageDraw.Draw(picture)
        font_px = max(14, round(max(self._size) / 40))
        font = ImageFont.load_default(font_px)
        step = max(1, round(font_px / 7))  # positions are searched on a grid of a seventh of a plate
        masks = [_coarse(mask, step) for _, mask, _ in marks]
        taken = np.asarray(np.sum(masks, axis=0, dtype=np.int32))
        for (text, _, color), mask in zip(marks, masks, strict=True):
            plate_w, plate_h = round(font_px * (0.62 * len(text) + 0.5)), round(font_px * 1.2)
            cells = -(-plate_w // step), -(-plate_h // step)
            gap = -(-(self._line_px + 2) // step)
            left, top = _plate_corner(mask, taken - mask, cells, gap=gap)
            taken[top : top + cells[1], left : left + cells[0]] += _PLATE
            x, y = min(left * step, self._size[0] - plate_w), min(top * step, self._size[1] - plate_h)
            draw.rectangle((x, y, x + plate_w - 1, y + plate_h - 1), fill=(0, 0, 0), outline=color, width=2)
            draw.text((x + plate_w / 2, y + plate_h / 2), text, fill="white", font=font, anchor="mm")
        self._pixels = np.array(picture)


def _box_around(segmentations: Sequence[Rle], size: tuple[int, int], config: ViewConfig | None) -> Box:
    """Return the smallest box that holds all regions, with its margin; the entire image without regions."""
    height, width = size
    if not segmentations:
        return 0, 0, width, height
    boxes = [rle_bbox(rle) for rle in segmentations]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    margin_x = max(config.margin * (right - left), config.margin_px) if config else 0
    margin_y = max(config.margin * (bottom - top), config.margin_px) if config else 0
    return (
        max(0, round(left - margin_x)),
        max(0, round(top - margin_y)),
        min(width, round(right + margin_x)),
        min(height, round(bottom + margin_y)),
    )


def _grown(mask: Mask, by_px: int) -> Mask:
    """Dilate the mask by `by_px` along rows and columns."""
    height, width = mask.shape
    padded = np.pad(mask, by_px)
    steps = range(2 * by_px + 1)
    tall = np.logical_or.reduce([padded[step : step + height] for step in steps])
    return np.logical_or.reduce([tall[:, step : step + width] for step in steps])


def _coarse(mask: Mask, step: int) -> Mask:
    """Downsample: a cell is set if any of its `step` x `step` pixels is."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % step), (0, -width % step)))
    return np.asarray(padded.reshape(padded.shape[0] // step, step, -1, step).any(axis=(1, 3)))


def _plate_corner(mask: Mask, others: NDArray[np.int32], plate: tuple[int, int], *, gap: int) -> tuple[int, int]:
    """Return (left, top) of a plate (width, height): inside the region if there is room, else next to it.

    `others` (h, w) counts regions and plates per pixel; a plate counts more than all regions together.
    """
    height, width = mask.shape
    plate_w, plate_h = plate
    if mask.sum() > 4 * plate_w * plate_h:  # a plate in a smaller region would cover it
        for room in (mask & (others == 0), mask):
            corner = _innermost_corner(room & (others < _PLATE), plate)
            if corner:
                return corner
    rows, columns = np.nonzero(mask)
    above, below = int(rows.min()) - gap - plate_h, int(rows.max()) + 1 + gap
    before, after = int(columns.min()) - gap - plate_w, int(columns.max()) + 1 + gap
    middle_x, middle_y = int(columns.mean()) - plate_w // 2, int(rows.mean()) - plate_h // 2
    corners = [
        *((after, middle_y), (before, middle_y), (middle_x, above), (middle_x, below)),
        *((after, above), (before, above), (after, below), (before, below)),
    ]

    def hidden(corner: tuple[int, int]) -> int:
        left, top = corner
        window = slice(top, top + plate_h), slice(left, left + plate_w)
        return int(others[window].sum() + mask[window].sum())

    inside = [
        (min(max(left, 0), max(0, width - plate_w)), min(max(top, 0), max(0, height - plate_h)))
        for left, top in corners
    ]
    return min(inside, key=hidden)


def _innermost_corner(room: Mask, plate: tuple[int, int]) -> tuple[int, int] | None:
    """Return (left, top) of the plate position inside the room farthest from its edges; None if it does not fit."""
    height, width = room.shape
    plate_w, plate_h = plate
    if plate_h > height or plate_w > width:
        return None
    sums = np.pad(room.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    within = (
        sums[plate_h:, plate_w:] - sums[:-plate_h, plate_w:] - sums[plate_h:, :-plate_w] + sums[:-plate_h, :-plate_w]
    )
    fits = within == plate_w * plate_h
    if not fits.any():
        return None
    depth = distance_transform_edt(np.pad(room, 1))[1:-1, 1:-1]
    centers = depth[plate_h // 2 :, plate_w // 2 :][: fits.shape[0], : fits.shape[1]]
    top, left = np.unravel_index(int(np.where(fits, centers, -1).argmax()), fits.shape)
    return int(left), int(top)
