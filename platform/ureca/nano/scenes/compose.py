"""Place things over each other and keep the visible parts: the owner of each pixel, and the remaining regions.

Things are painted in order, each over the previous ones. A region's mask is its visible part, including the things in
it. Mostly hidden parts are dropped; a composition in which a whole thing can't be recognized, or the color of a region
is not the most common one in it, is rejected. Shapes: H rows, W columns, P pieces of all things together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ureca.nano.scenes.objects import (
    MAX_MARKS_SHARE,
    MAX_SHARE_OF_PARENT,
    MIN_AREA_PX,
    MIN_SIDE_PX,
    MIN_TEXTURED_SHARE,
    SceneObject,
)
from ureca.nano.scenes.outline import Piece, paint, piece_tables
from ureca.nano.scenes.paint import PLAIN, Coat

MIN_SEEN_OF_THING = 0.6
"""Least share of a covered thing that is seen."""
MIN_SEEN_OF_PART = 0.5
"""A part of which less is seen is no region."""
MIN_TEXTURED_SEEN_PX = 750
"""Least visible pixels of a textured piece: less does not show its pattern."""
MIN_LEAD = 1.15
"""Minimum ratio of a region's color to any other color in it, in pixels."""
MIN_COLOR_SHARE = 0.48
"""Least share of a region in its own color, marks of a texture counted with it."""


@dataclass(frozen=True)
class Placed:
    """A thing with its upper left corner at (y, x).

    `kept` are its painted pieces, `textured` those that carry its texture. `inside` is the piece that it lies in, as
    (index among the placed things, piece). `relation` to the thing of index `related`: "on", "in front of" or "".
    """

    thing: SceneObject
    kept: frozenset[int]
    textured: frozenset[int]
    y: int
    x: int
    inside: tuple[int, int] | None = None
    relation: str = ""
    related: int = -1
    alike: bool = False


@dataclass(frozen=True)
class Seen:
    """A region that is left: piece `piece` of thing `placed`; `parent` is an index among the regions, -1 = none.

    `window` is the mask, bool (h, w), within the box of its thing, whose upper left corner is (y, x).
    """

    placed: int
    piece: Piece
    is_whole: bool
    parent: int
    window: np.ndarray
    y: int
    x: int
    texture: str
    seen_share: float

    def mask(self, height: int, width: int) -> np.ndarray:
        """The mask in the picture, bool (H, W)."""
        mask = np.zeros((height, width), bool)
        mask[self.y : self.y + self.window.shape[0], self.x : self.x + self.window.shape[1]] = self.window
        return mask


@dataclass(frozen=True)
class Composition:
    """`owner` is int16 (H, W): 0 = background, p + 1 = piece p of all pieces, painted with `coats[p]`."""

    owner: np.ndarray
    coats: tuple[Coat, ...]
    regions: tuple[Seen, ...]


def compose(things: Sequence[Placed], height: int, width: int, smallest_px: float) -> Composition | None:
    """Paint things in order; return None if the result would be hard to recognize."""
    owner = np.zeros((height, width), np.int16)
    pieces: list[tuple[int, int]] = []
    coats: list[Coat] = []
    parents: list[int] = []
    drawn_px: list[int] = []
    first: list[dict[int, int]] = []
    windows: list[np.ndarray] = []
    for index, placed in enumerate(things):
        outline = placed.thing.outline
        local = paint(outline, placed.thing.scale, placed.kept, placed.thing.mirrored)
        tables = piece_tables(outline)
        counts = np.bincount(local.ravel(), minlength=len(outline.pieces) + 1)
        labels = np.zeros(len(outline.pieces) + 1, np.int16)
        number: dict[int, int] = {}
        for piece in sorted(placed.kept):
            this = outline.pieces[piece]
            number[piece] = len(pieces)
            labels[piece + 1] = len(pieces) + 1
            if piece:
                parents.append(number[this.parent])
            else:
                parents.append(first[placed.inside[0]][placed.inside[1]] if placed.inside else -1)
            pieces.append((index, piece))
            drawn_px.append(int(counts[tables[piece]].sum()))
            texture = placed.thing.texture if piece in placed.textured else PLAIN
            coats.append(Coat(placed.thing.palette[this.role], texture, placed.thing.scale))
        first.append(number)
        window = owner[placed.y : placed.y + local.shape[0], placed.x : placed.x + local.shape[1]]
        painted = local > 0
        window[painted] = labels[local[painted]]
        windows.append(window)
    regions = _regions(things, owner, windows, pieces, coats, parents, drawn_px, max(smallest_px, MIN_AREA_PX))
    return Composition(owner, tuple(coats), regions) if regions is not None else None


def _regions(
    things: Sequence[Placed],
    owner: np.ndarray,
    windows: list[np.ndarray],
    pieces: list[tuple[int, int]],
    coats: list[Coat],
    parents: list[int],
    drawn_px: list[int],
    smallest_px: float,
) -> tuple[Seen, ...] | None:
    """Return the visible pieces, parents first; None if the composition must be rejected.

    `windows` are views of `owner`, one per thing.
    """
    count = len(pieces)
    own = np.bincount(owner.ravel(), minlength=count + 1)[1:]
    below = np.eye(count, count + 1, k=1, dtype=bool)
    for number in range(count - 1, -1, -1):
        if parents[number] >= 0:
            below[parents[number]] |= below[number]
    seen_px = below[:, 1:] @ own
    index_of: dict[int, int] = {-1: -1}
    regions: list[Seen] = []
    for number, (index, piece) in enumerate(pieces):
        this = things[index].thing.outline.pieces[piece]
        share = seen_px[number] / drawn_px[number]
        above = parents[number]
        if above not in index_of:
            continue
        window = below[number][windows[index]]
        fits = seen_px[number] >= smallest_px and min(window.any(0).sum(), window.any(1).sum()) >= MIN_SIDE_PX
        fits &= above < 0 or seen_px[number] <= MAX_SHARE_OF_PARENT * seen_px[above]
        if not fits or share < (MIN_SEEN_OF_THING if piece == 0 else MIN_SEEN_OF_PART):
            # The thing itself and its identifying part must be visible.
            if piece < 2:
                return None
            continue
        inside = np.flatnonzero(below[number][1:])
        if not _color_leads(coats, own, inside, number):
            return None
        texture = things[index].thing.texture
        textured = [part for part in inside if coats[part].texture is not PLAIN and pieces[part][0] == index]
        if any(own[part] < MIN_TEXTURED_SEEN_PX for part in textured):
            return None
        carries = own[textured].sum() >= MIN_TEXTURED_SHARE * seen_px[number]
        index_of[number] = len(regions)
        word = texture.name if carries else PLAIN.name
        y, x = things[index].y, things[index].x
        regions.append(Seen(index, this, piece == 0, index_of[above], window, y, x, word, float(share)))
    return tuple(regions)


def _color_leads(coats: list[Coat], own: np.ndarray, inside: np.ndarray, number: int) -> bool:
    """Return True if the color of piece `number` clearly dominates the pieces `inside` it."""
    pixels: dict[str, float] = {}
    in_color = 0.0
    for part in inside:
        coat = coats[part]
        marks = 0.0 if coat.texture is PLAIN else MAX_MARKS_SHARE * own[part]
        pixels[coat.color] = pixels.get(coat.color, 0.0) + own[part] - marks
        if marks:
            second = coat.texture.second_color
            pixels[second] = pixels.get(second, 0.0) + marks
        if coat.color == coats[number].color:
            in_color += own[part]
    color = coats[number].color
    others = max((count for name, count in pixels.items() if name != color), default=0.0)
    return pixels[color] >= MIN_LEAD * others and in_color >= MIN_COLOR_SHARE * own[inside].sum()
