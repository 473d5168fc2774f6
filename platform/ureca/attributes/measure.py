"""Measure color, texture, shape, size and place of each region from pixels and mask.

Colors and texture of a region with children are measured on the pixels outside its children, as long as enough of them
are left. Only the crop around a region is processed. Shapes: H rows, W columns of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ureca.attributes.colors import color_features, name_colors, shade_counts
from ureca.attributes.shapes import name_shape, outline, reduced
from ureca.attributes.textures import name_texture
from ureca.attributes.vocabulary import place_of, size_of
from ureca.errors import MaskSizeError
from ureca.regions.rle import Rle, decode_rle

MOST = "most"
"""Place in its parent of a region that covers nearly all of it."""

GRID = 9
"""Cells along each side of the grid used by fallback captions."""

_MOST_SHARE = 0.6
_OWN_SHARE = 0.5  # minimum fraction of a region outside its children to be measured there


@dataclass(frozen=True, kw_only=True)
class RegionAttributes:
    """Measured attributes of one region; words are from the vocabulary.

    `color2` is a second color that covers much of it; `texture` is None if no word fits it. `place_in_parent` is on the
    parent's bounding box, or "most", or None at the top level. `parent` is an index among the image's regions, -1 =
    none. `share` is of the image's area; `cx`, `cy` are the centroid in 0..1. `cell` is (column, row), from 1, of GRID
    x GRID.
    """

    color: str
    color2: str | None
    texture: str | None
    shape: str
    size: str
    place: str
    place_in_parent: str | None
    parent: int
    noun: str
    """"object" at the top level ("area" if huge), "part" below it."""
    share: float
    cx: float
    cy: float
    elongation: float
    features: np.ndarray = field(repr=False, compare=False)
    """float64 (F,) of length 1: colors, shape and size, compared by cosine."""

    @property
    def cell(self) -> tuple[int, int]:
        return min(GRID, int(self.cx * GRID) + 1), min(GRID, int(self.cy * GRID) + 1)

    def words(self) -> dict[str, str]:
        """Return the named attributes, as the region table stores them."""
        names = ("color", "color2", "texture", "shape", "size", "place", "place_in_parent")
        return {name: value for name in names if (value := getattr(self, name))}

    def with_truth(self, truth: Mapping[str, str]) -> RegionAttributes:
        """Return the region with its words replaced by true ones, known for synthetic scenes."""
        return replace(
            self,
            color=truth.get("color", self.color),
            texture=truth.get("texture", self.texture),
            shape=truth.get("shape", self.shape),
            size=truth.get("size", self.size),
            place=truth.get("place", self.place),
        )


def measure_tree(image: np.ndarray, segmentations: Sequence[Rle], parents: Sequence[int]) -> list[RegionAttributes]:
    """Measure all regions of an image (uint8 (H, W, 3), RGB); parents come before their children.

    Raises:
        MaskSizeError: a mask has another size than the image.
    """
    masks = [_decode(image, segmentation) for segmentation in segmentations]
    covered: list[np.ndarray | None] = [None] * len(masks)
    for index, parent in enumerate(parents):
        if parent >= 0:
            below = covered[parent]
            covered[parent] = masks[index] if below is None else below | masks[index]
    boxes: list[tuple[int, int, int, int]] = []
    result: list[RegionAttributes] = []
    for index, parent in enumerate(parents):
        boxes.append(_box(masks[index]))
        measured = _measure(image, masks[index], boxes[index], covered[index])
        if parent >= 0:
            measured = replace(measured, parent=parent, noun="part")
            measured = replace(measured, place_in_parent=_place_in(measured, result[parent], boxes[parent], image))
        result.append(measured)
    return result


def measure(image: np.ndarray, segmentation: Rle) -> RegionAttributes:
    """Measure one region of an image (uint8 (H, W, 3), RGB) independently of others."""
    return measure_tree(image, [segmentation], [-1])[0]


def _decode(image: np.ndarray, segmentation: Rle) -> np.ndarray:
    if list(segmentation["size"]) != list(image.shape[:2]):
        raise MaskSizeError(
            f"a mask of size {list(segmentation['size'])} for an image of {list(image.shape[:2])} "
            "(height, width): encode the mask at the image's size."
        )
    return decode_rle(segmentation)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right), ends excluded."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _place_in(
    region: RegionAttributes, parent: RegionAttributes, box: tuple[int, int, int, int], image: np.ndarray
) -> str:
    if region.share > _MOST_SHARE * parent.share:
        return MOST
    top, bottom, left, right = box
    height, width = image.shape[:2]
    return place_of((region.cx * width - left) / (right - left), (region.cy * height - top) / (bottom - top))


def _measure(
    image: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int], children: np.ndarray | None
) -> RegionAttributes:
    height, width = mask.shape
    top, bottom, left, right = box
    window = np.s_[top:bottom, left:right]
    crop, inside = image[window], mask[window]
    area = int(inside.sum())
    ys, xs = np.nonzero(inside)
    cx, cy = (left + xs.mean() + 0.5) / width, (top + ys.mean() + 0.5) / height
    share = area / mask.size

    own = inside
    if children is not None:
        left_over = inside & ~children[window]
        own = left_over if left_over.sum() >= _OWN_SHARE * area else inside
    core = _shrink(own)
    counts = shade_counts(crop[core])
    color, color2 = name_colors(counts)
    small = reduced(inside)
    geometry = outline(small)
    return RegionAttributes(
        color=color,
        color2=color2,
        texture=name_texture(crop, core),
        shape=name_shape(geometry, int(small.sum())),
        size=size_of(share),
        place=place_of(cx, cy),
        place_in_parent=None,
        parent=-1,
        noun="area" if size_of(share) == "huge" else "object",
        share=share,
        cx=float(cx),
        cy=float(cy),
        elongation=geometry.elongation,
        features=_features(counts, share, geometry.elongation, geometry.harmonics),
    )


def _shrink(mask: np.ndarray) -> np.ndarray:
    """Remove the pixels at the mask's edge, where colors mix; keep the whole mask if little would be left."""
    padded = np.pad(mask, 1)
    core = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return core if core.sum() >= 0.4 * mask.sum() else mask


def _features(counts: np.ndarray, share: float, elongation: float, harmonics: np.ndarray) -> np.ndarray:
    """Return the features of one region: colors, then size and shape.

    Size and shape are directions, so that every part adds to the cosine by its weight.
    """
    size_angle = np.clip(np.log2(max(share, 2**-12)) / -12, 0, 1) * np.pi / 2
    long_angle = np.clip(np.log2(elongation) / 3, 0, 1) * np.pi / 2
    form = np.concatenate([[1.0], 6 * harmonics[2:5]])
    parts = [
        color_features(counts),
        0.6 * np.array([np.cos(size_angle), np.sin(size_angle)]),
        0.6 * np.array([np.cos(long_angle), np.sin(long_angle)]),
        0.6 * form / np.linalg.norm(form),
    ]
    features = np.concatenate(parts)
    return features / np.linalg.norm(features)
