"""One picture of an image with outlined, numbered regions and their captions and labels.

    [ image with regions ]  1  CAPTION
                               label: LABEL
                            2  ...

A caption is green if it fits only its region, red if it fits another as well or better, and black if that was not
checked.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ureca.regions.rle import Rle
from ureca.viewer.draw import Pixels, draw_regions, region_color

INK, FAINT, RIGHT, WRONG = (43, 48, 59), (110, 117, 128), (15, 118, 60), (180, 40, 30)
_FONT_PX, _LINE_PX, _MARGIN_PX, _BADGE_PX = 13, 17, 12, 26
_COLUMNS = 62
"""Characters per line of text."""


@dataclass(frozen=True, kw_only=True)
class CaptionedRegion:
    number: int
    segmentation: Rle
    caption: str
    label: str
    """Label to compare with."""
    fits_alone: bool | None = None
    """True if the caption fits this region better than every other region of its image."""


def captioned_picture(
    image: Pixels, regions: Sequence[CaptionedRegion], *, title: str = "", longest_px: int = 560
) -> Pixels:
    """Return the picture, uint8 (h, w, 3), RGB, of an image (uint8 (H, W, 3), RGB); larger regions come first."""
    drawn = draw_regions(image, {each.number: each.segmentation for each in regions}, longest_px=longest_px)
    blocks = [_lines(region) for region in regions]
    text_px = _MARGIN_PX + _LINE_PX * (1 + sum(len(lines) for lines in blocks)) + 6 * len(blocks)
    font = ImageFont.load_default(_FONT_PX)
    width = drawn.shape[1] + 3 * _MARGIN_PX + _BADGE_PX + round(0.52 * _FONT_PX * _COLUMNS)
    height = max(drawn.shape[0] + _LINE_PX + _MARGIN_PX, text_px) + _MARGIN_PX
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(Image.fromarray(drawn), (_MARGIN_PX, _MARGIN_PX + _LINE_PX))
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN_PX, _MARGIN_PX // 2), title, fill=INK, font=font)
    left, top = drawn.shape[1] + 2 * _MARGIN_PX, _MARGIN_PX + _LINE_PX
    for region, lines in zip(regions, blocks, strict=True):
        badge = (left, top, left + _BADGE_PX - 6, top + _LINE_PX - 2)
        draw.rounded_rectangle(badge, radius=4, fill=region_color(region.number))
        middle = ((badge[0] + badge[2]) / 2, (badge[1] + badge[3]) / 2)
        draw.text(middle, str(region.number), fill="white", font=font, anchor="mm")
        for line, color in lines:
            draw.text((left + _BADGE_PX, top), line, fill=color, font=font)
            top += _LINE_PX
        top += 6
    return np.asarray(canvas)


def _lines(region: CaptionedRegion) -> list[tuple[str, tuple[int, int, int]]]:
    color = {True: RIGHT, False: WRONG, None: INK}[region.fits_alone]
    said = textwrap.wrap(region.caption, _COLUMNS) or ["(no caption)"]
    label = textwrap.wrap(f"label: {region.label}", _COLUMNS)
    return [*((line, color) for line in said), *((line, FAINT) for line in label)]
