"""A sketch: the pieces of one thing before it has a size, a color or a place.

Coordinates are in heights of the thing: y runs from 0 (top) to 1, x from 0 to `ratio` (width / height), so a circle
stays round. Pieces are painted in the order in which they were added, each over the previous ones; every pixel belongs
to the last piece painted there. A region's mask is its pixels and those of its descendants.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]


@dataclass(frozen=True)
class Stroke:
    """One painted form of a piece: "ellipse", "box" (each by two corners), "polygon". A hole is nobody's."""

    piece: int
    form: str
    points: tuple[Point, ...]
    hole: bool = False


@dataclass(frozen=True)
class Piece:
    """One region of the thing. `role` names its color: pieces of one role share it."""

    name: str
    parent: int
    role: str
    shape: str


class Outline:
    """Pieces of a thing and its strokes, in painting order.

    Piece 0 is the thing itself; piece 1 is its identifying part. `carries` is (x0, x1, y) of the surface that things
    stand on, `holds` the piece that things lie in and the box (x0, y0, x1, y1) for them.
    """

    def __init__(self, kind: str, ratio: float, shape: str = "irregular") -> None:
        self.ratio = ratio
        self.pieces = [Piece(kind, -1, "main", shape)]
        self.strokes: list[Stroke] = []
        self.carries: tuple[float, float, float] | None = None
        self.holds: tuple[int, tuple[float, float, float, float]] | None = None

    def piece(self, name: str, *, role: str, shape: str, parent: int = 0) -> int:
        """Add a region without pixels; returns its index."""
        self.pieces.append(Piece(name, parent, role, shape))
        return len(self.pieces) - 1

    def ellipse(self, piece: int, cx: float, cy: float, rx: float, ry: float, *, hole: bool = False) -> int:
        corners = ((cx - rx, cy - ry), (cx + rx, cy + ry))
        self.strokes.append(Stroke(piece, "ellipse", corners, hole))
        return piece

    def polygon(self, piece: int, points: Iterable[Point]) -> int:
        self.strokes.append(Stroke(piece, "polygon", tuple(points)))
        return piece

    def box(self, piece: int, x0: float, y0: float, x1: float, y1: float) -> int:
        self.strokes.append(Stroke(piece, "box", ((x0, y0), (x1, y1))))
        return piece

    def disc(self, name: str, cx: float, cy: float, r: float, *, role: str, parent: int = 0) -> int:
        """Add a round region."""
        return self.ellipse(self.piece(name, role=role, shape="round", parent=parent), cx, cy, r, r)

    def block(
        self, name: str, x0: float, y0: float, x1: float, y1: float, *, role: str, shape: str, parent: int = 0
    ) -> int:
        """Add an upright box as a region."""
        return self.box(self.piece(name, role=role, shape=shape, parent=parent), x0, y0, x1, y1)

    def patch(self, name: str, points: Iterable[Point], *, role: str, shape: str = "irregular", parent: int = 0) -> int:
        """Add a polygon as a region."""
        return self.polygon(self.piece(name, role=role, shape=shape, parent=parent), points)


def painted_size(outline: Outline, scale: float) -> tuple[int, int]:
    """(height, width) in px of a thing that is `scale` px high."""
    return round(scale), round(scale * outline.ratio)


def paint(outline: Outline, scale: float, kept: frozenset[int], mirrored: bool) -> np.ndarray:
    """Owner of each pixel, uint8 (h, w): 0 = nobody, i + 1 = piece i. `scale` is the thing's height in px.

    Pieces outside `kept` are not painted.
    """
    height, width = painted_size(outline, scale)
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for stroke in outline.strokes:
        if stroke.piece not in kept:
            continue
        fill = 0 if stroke.hole else stroke.piece + 1
        points = [(round(x * (scale - 1)), round(y * (scale - 1))) for x, y in stroke.points]
        if stroke.form == "ellipse":
            draw.ellipse(points, fill=fill)
        elif stroke.form == "box":
            draw.rectangle(points, fill=fill)
        else:
            draw.polygon(points, fill=fill)
    owner = np.asarray(canvas)
    return np.ascontiguousarray(owner[:, ::-1]) if mirrored else owner


def region_areas(owner: np.ndarray, outline: Outline) -> tuple[np.ndarray, np.ndarray]:
    """Own pixels of each piece, and pixels of each piece with its descendants; both int64 (pieces,)."""
    own = np.bincount(owner.ravel(), minlength=len(outline.pieces) + 1)[1:]
    whole = own.copy()
    for index in range(len(outline.pieces) - 1, 0, -1):
        whole[outline.pieces[index].parent] += whole[index]
    return own, whole


def piece_tables(outline: Outline) -> np.ndarray:
    """bool (pieces, pieces + 1): [i][owner] is the mask of piece i, its descendants included."""
    tables = np.eye(len(outline.pieces), len(outline.pieces) + 1, k=1, dtype=bool)
    for index in range(len(outline.pieces) - 1, 0, -1):
        tables[outline.pieces[index].parent] |= tables[index]
    return tables
