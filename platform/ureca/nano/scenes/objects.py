"""Drawable things: a sketch with colors, a texture and a scale, alone or in a group of alike ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from ureca.attributes.vocabulary import COLORS
from ureca.nano.scenes.catalog import KINDS
from ureca.nano.scenes.outline import Outline, paint, painted_size, piece_tables, region_areas
from ureca.nano.scenes.paint import Texture, color_distance

MIN_SIDE_PX = 6
MIN_AREA_PX = 70
MAX_SHARE_OF_PARENT = 0.8
"""Well below the tree's limit for near-duplicates, so that no part is merged into its parent."""
MIN_MAIN_SHARE = 0.52
"""Least share of a region's mask in its own color; less, and another color would be the true one."""
MIN_TEXTURED_PX = 900
MIN_TEXTURED_SHARE = 0.55
"""Least share of a region's mask under its texture."""
MAX_MARKS_SHARE = 0.4
"""Most of a surface that the marks of any texture cover."""
GAP_PX = 3
"""Minimum distance of a thing from the border of its cell, so that things never touch."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in px."""


@dataclass(frozen=True)
class SceneObject:
    """Appearance of a thing; alike things share all but one of these fields.

    `palette` maps roles to color names; `texture` covers the pieces of role "main".
    """

    outline: Outline
    palette: dict[str, str]
    texture: Texture
    scale: float
    mirrored: bool


def alike_things(
    rng: Generator, kind: str, boxes: Sequence[Box], names: list[str], main_names: list[str]
) -> list[SceneObject]:
    """One thing per box; the second and third differ from the first in one attribute, or in place only.

    Colors are from `names`, those of role "main" from `main_names`.
    """
    outline = KINDS[kind](rng)
    fits = [
        min(y1 - y0 - 2 * GAP_PX, (x1 - x0 - 2 * GAP_PX) / outline.ratio) * rng.uniform(0.84, 1.0)
        for x0, y0, x1, y1 in boxes
    ]
    palette: dict[str, str] = {}
    for piece in outline.pieces:
        if piece.role not in palette:
            palette[piece.role] = _pick_color(
                rng, names if piece.parent >= 0 else main_names, outline, palette, piece.parent
            )
    first = SceneObject(outline, palette, _pick_texture(rng, palette), min(fits), bool(rng.random() < 0.5))
    things = [first]
    if len(boxes) > 1:
        difference = str(rng.choice(["color", "color", "size", "texture", "place"]))
        for _ in boxes[1:]:
            things.append(_changed(rng, difference, things, main_names))
    return things


def _changed(rng: Generator, difference: str, things: list[SceneObject], names: list[str]) -> SceneObject:
    """Return a copy of the first of `things` with one attribute that none of them has."""
    first = things[0]
    if difference == "color":
        taken = set(first.palette.values()) | {thing.palette["main"] for thing in things} | {first.texture.second_color}
        free = [name for name in names if name not in taken]
        if free:
            return replace(first, palette={**first.palette, "main": str(rng.choice(free))})
    if difference == "size" and len(things) == 1:
        return replace(first, scale=first.scale * 0.6)
    if difference == "texture":
        other = _pick_texture(rng, first.palette)
        if all(other.name != thing.texture.name for thing in things):
            return replace(first, texture=other)
    return first


def _pick_color(rng: Generator, names: list[str], outline: Outline, palette: dict[str, str], parent: int) -> str:
    """A color far from the parent's; pieces that touch the background keep away from its color too."""
    if parent < 0:
        return str(rng.choice(names))
    above = palette[outline.pieces[parent].role]
    on_top = outline.pieces[parent].parent >= 0
    far = [name for name, rgb in COLORS.items() if color_distance(rgb, COLORS[above]) > 100]
    free = far if on_top else [name for name in far if name in names] or far
    unused = [name for name in free if name not in palette.values()]
    return str(rng.choice(unused or free))


def _pick_texture(rng: Generator, palette: dict[str, str]) -> Texture:
    """Texture of the main pieces; its marks are not of the color of a part, which would look like a hole."""
    pattern = "smooth"
    if rng.random() < 0.55:
        pattern = str(rng.choice(["striped", "checkered", "dotted", "speckled"]))
    far = [name for name, rgb in COLORS.items() if color_distance(rgb, COLORS[palette["main"]]) > 130]
    unused = [name for name in far if name not in palette.values()]
    return Texture(pattern, str(rng.choice(unused or far)), int(rng.integers(3)))


def kept_pieces(thing: SceneObject, smallest_px: float) -> frozenset[int] | None:
    """Return the pieces of at least `smallest_px` pixels that leave their parents' color the main one.

    None if the identifying part of the thing would be lost.
    """
    outline = thing.outline
    if min(painted_size(outline, thing.scale)) < MIN_SIDE_PX:
        return None
    tables = piece_tables(outline)
    kept = frozenset(range(len(outline.pieces)))
    while (bad := _unfit_piece(thing, tables, kept, max(smallest_px, MIN_AREA_PX))) is not None:
        kept -= frozenset(np.flatnonzero(tables[bad][1:]).tolist())
        if 1 not in kept:
            return None
    return kept


def _unfit_piece(thing: SceneObject, tables: np.ndarray, kept: frozenset[int], smallest_px: float) -> int | None:
    """A piece that has to go, or None."""
    outline = thing.outline
    owner = paint(outline, thing.scale, kept, thing.mirrored)
    own, whole = region_areas(owner, outline)
    for piece in sorted(kept, reverse=True):
        this = outline.pieces[piece]
        if whole[piece] < smallest_px:
            return piece
        if this.parent >= 0 and whole[piece] > MAX_SHARE_OF_PARENT * whole[this.parent]:
            return piece
        mask = tables[piece][owner]
        if min(mask.any(0).sum(), mask.any(1).sum()) < MIN_SIDE_PX:
            return piece
        inside = [m for m in sorted(kept) if tables[piece][m + 1]]
        if sum(own[m] for m in inside if outline.pieces[m].role == this.role) < MIN_MAIN_SHARE * whole[piece]:
            return inside[-1]
    return None


def textured_pieces(thing: SceneObject, kept: frozenset[int]) -> frozenset[int]:
    """Pieces that can carry a texture: those of role "main", if large and little covered by parts.

    Empty where the texture would not be that of the whole thing, or its marks would leave less of the main
    color than there is of a part's.
    """
    outline = thing.outline
    own, whole = region_areas(paint(outline, thing.scale, kept, thing.mirrored), outline)
    carriers = frozenset(
        index
        for index, piece in enumerate(outline.pieces)
        if piece.role == "main" and own[index] >= max(MIN_TEXTURED_PX, MIN_TEXTURED_SHARE * whole[index])
    )
    carried = sum(own[index] for index in carriers)
    of_role: dict[str, int] = {}
    for index in kept:
        role = outline.pieces[index].role
        of_role[role] = of_role.get(role, 0) + int(own[index])
    main = of_role.pop("main") - MAX_MARKS_SHARE * carried
    if carried < MIN_TEXTURED_SHARE * whole[0] or main < 1.2 * max(of_role.values(), default=0):
        return frozenset()
    return carriers
