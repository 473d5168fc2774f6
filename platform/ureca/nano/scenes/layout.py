"""Layout: the image is split into cells at random, and each cell holds an arrangement.

    alone       one thing
    alike       two or three cells hold things that differ in one attribute only, or in place only
    carried     a table or a shelf, and a thing that stands on it; "carried two": two things
    contained   a box, a bowl or a frame, and a thing that lies in it
    covered     a thing, and another in front of it that hides 8 to 38 percent of it

The largest cells get the arrangements of several things.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.random import Generator

from ureca.attributes.vocabulary import COLORS
from ureca.nano.scenes.catalog import CARRIERS, CONTAINERS
from ureca.nano.scenes.compose import Placed, compose
from ureca.nano.scenes.objects import GAP_PX, Box, alike_things, kept_pieces, textured_pieces
from ureca.nano.scenes.outline import paint, painted_size
from ureca.nano.scenes.paint import color_distance

Arrangement = Literal["carried", "carried two", "contained", "covered"]

THINGS_IN: dict[Arrangement, int] = {"carried": 2, "carried two": 3, "contained": 2, "covered": 2}
"""Number of whole things in an arrangement."""

SEEN_SHARES = (0.62, 0.92)
"""Visible fraction of a covered thing."""
_TRIES = 14


@dataclass
class Supply:
    """Unused kinds of this scene, and colors that stand out."""

    kinds: list[str]
    colors: list[str]
    smallest_px: float
    height: int
    width: int

    def make(
        self, rng: Generator, boxes: Sequence[Box], main_colors: list[str], among: Sequence[str] = ()
    ) -> list[Placed]:
        """Alike things of the first kind (`among` these, if given) that fits, one per box, at (0, 0).

        Their main color is one of `main_colors`. Empty where no kind fits.
        """
        for kind in [kind for kind in self.kinds if not among or kind in among]:
            if made := self._make(rng, kind, boxes, main_colors):
                self.kinds.remove(kind)
                return made
        return []

    def _make(self, rng: Generator, kind: str, boxes: Sequence[Box], main_colors: list[str]) -> list[Placed]:
        if any(min(x1 - x0, y1 - y0) <= 2 * GAP_PX for x0, y0, x1, y1 in boxes):
            return []
        things = alike_things(rng, kind, boxes, self.colors, main_colors)
        smallest = min(things, key=lambda thing: thing.scale)
        # A tenth of slack: the same piece may lose some pixels to rounding at another scale.
        kept = kept_pieces(smallest, 1.1 * self.smallest_px)
        if kept is None:
            return []
        # Decided on the smallest for all: alike things differ in nothing but the one attribute.
        textured = textured_pieces(smallest, kept)
        return [Placed(thing, kept, textured, 0, 0) for thing in things]

    def apart(self, colors: Sequence[str], names: Sequence[str]) -> list[str]:
        """Those of `names` far from all of `colors`, or if they are few, from the first of them."""
        for others in (colors, colors[:1]):
            free = [name for name in names if all(color_distance(COLORS[name], COLORS[one]) > 95 for one in others)]
            if len(free) >= 3:
                return free
        return list(names)


def split_cells(rng: Generator, height: int, width: int, wanted: int) -> list[Box]:
    """Split the picture at random into one cell (x0, y0, x1, y1) per arrangement; the largest is split next."""
    cells = [(0, 0, width, height)]
    while len(cells) < wanted:
        cells.sort(key=_area)
        x0, y0, x1, y1 = cells.pop()
        share = rng.uniform(0.38, 0.62)
        if (x1 - x0) * rng.uniform(0.8, 1.25) > y1 - y0:
            cut = round(x0 + share * (x1 - x0))
            cells += [(x0, y0, cut, y1), (cut, y0, x1, y1)]
        else:
            cut = round(y0 + share * (y1 - y0))
            cells += [(x0, y0, x1, cut), (x0, cut, x1, y1)]
    return cells


def arrange(
    rng: Generator, supply: Supply, cells: list[Box], arrangements: Sequence[Arrangement], num_alike: int
) -> list[Placed] | None:
    """Fill all cells: one arrangement each for the largest, alike things in `num_alike` of the others.

    Returns None if a cell can't be filled.
    """
    by_size = sorted(cells, key=_area, reverse=True)
    placed: list[Placed] = []
    for box, arrangement in zip(by_size, arrangements, strict=False):
        group = _ARRANGE[arrangement](rng, supply, box)
        if not group:
            return None
        placed += _numbered(group, len(placed))
    rest = by_size[len(arrangements) :]
    rest = [rest[index] for index in rng.permutation(len(rest))]
    if num_alike:
        group = supply.make(rng, rest[:num_alike], supply.colors)
        if not group:
            return None
        for made, box in zip(group, rest[:num_alike], strict=True):
            placed.append(replace(_somewhere(rng, made, box), alike=True))
    for box in rest[num_alike:]:
        group = _alone(rng, supply, box)
        if not group:
            return None
        placed += _numbered(group, len(placed))
    return placed


def _alone(rng: Generator, supply: Supply, box: Box) -> list[Placed]:
    return [_somewhere(rng, made, box) for made in supply.make(rng, [box], supply.colors)]


def _carried(rng: Generator, supply: Supply, box: Box, num_carried: int = 1) -> list[Placed]:
    x0, y0, x1, y1 = box
    top = y1 - round(0.54 * (y1 - y0))
    made = supply.make(rng, [(x0, top - GAP_PX, x1, y1)], supply.colors, CARRIERS)
    if not made:
        return []
    carrier = _at_bottom(rng, made[0], (x0 + GAP_PX, x1 - GAP_PX), y1 - GAP_PX)
    surface = carrier.thing.outline.carries
    assert surface is not None
    scale = carrier.thing.scale
    left, right = carrier.x + round(surface[0] * scale), carrier.x + round(surface[1] * scale)
    level = carrier.y + round(surface[2] * scale)
    colors = supply.apart([carrier.thing.palette["main"]], supply.colors)
    spans = [(left, right)]
    if num_carried == 2:
        cut = round(left + rng.uniform(0.42, 0.58) * (right - left))
        spans = [(left, cut), (cut, right)]
    group = [carrier]
    for start, end in spans:
        # The gap below belongs to the box only: what stands touches what it stands on.
        for standing in supply.make(rng, [(start, y0, end, level + GAP_PX)], colors):
            group.append(replace(_at_bottom(rng, standing, (start + 2, end - 2), level), relation="on", related=0))
    return group if len(group) == 1 + num_carried else []


def _carried_two(rng: Generator, supply: Supply, box: Box) -> list[Placed]:
    return _carried(rng, supply, box, num_carried=2)


def _contained(rng: Generator, supply: Supply, box: Box) -> list[Placed]:
    made = supply.make(rng, [box], supply.colors, CONTAINERS)
    if not made:
        return []
    container = _somewhere(rng, made[0], box)
    holds = container.thing.outline.holds
    assert holds is not None
    piece, corners = holds
    outline, scale = container.thing.outline, container.thing.scale
    room = tuple(round(value * scale) for value in corners)
    inner = (container.x + room[0], container.y + room[1], container.x + room[2], container.y + room[3])
    colors = supply.apart([container.thing.palette[outline.pieces[piece].role]], list(COLORS))
    # A texture behind the contained thing would be mostly hidden.
    container = replace(container, textured=container.textured - {piece})
    for _ in range(4):
        content = supply.make(rng, [inner], colors)
        if not content:
            return []
        group = [container, replace(_somewhere(rng, content[0], inner), inside=(0, piece))]
        if compose(group, supply.height, supply.width, supply.smallest_px):
            return group
    return []


def _covered(rng: Generator, supply: Supply, box: Box) -> list[Placed]:
    x0, y0, x1, y1 = box
    height, width = y1 - y0, x1 - x0
    below = supply.make(rng, [(0, 0, round(0.86 * width), round(0.86 * height))], supply.colors)
    if not below:
        return []
    covered = _somewhere(rng, below[0], box)
    colors = supply.apart(list(covered.thing.palette.values()), supply.colors)
    above = supply.make(rng, [(0, 0, round(0.64 * width), round(0.64 * height))], colors)
    if not above:
        return []
    for _ in range(_TRIES):
        cover = replace(_somewhere(rng, above[0], box), relation="in front of", related=0)
        composed = compose([covered, cover], supply.height, supply.width, supply.smallest_px)
        if composed and SEEN_SHARES[0] <= composed.regions[0].seen_share <= SEEN_SHARES[1]:
            return [covered, cover]
    return []


_ARRANGE: dict[Arrangement, Callable[[Generator, Supply, Box], list[Placed]]] = {
    "carried": _carried,
    "carried two": _carried_two,
    "contained": _contained,
    "covered": _covered,
}


def _numbered(group: list[Placed], start: int) -> list[Placed]:
    """The group with its indices counted from `start`."""
    return [
        replace(
            placed,
            inside=(placed.inside[0] + start, placed.inside[1]) if placed.inside else None,
            related=placed.related + start if placed.related >= 0 else -1,
        )
        for placed in group
    ]


def _somewhere(rng: Generator, placed: Placed, box: Box) -> Placed:
    """Place it at random inside a box, away from its border."""
    x0, y0, x1, y1 = box
    height, width = painted_size(placed.thing.outline, placed.thing.scale)
    y = int(rng.integers(y0 + GAP_PX, max(y0 + GAP_PX, y1 - GAP_PX - height) + 1))
    x = int(rng.integers(x0 + GAP_PX, max(x0 + GAP_PX, x1 - GAP_PX - width) + 1))
    return replace(placed, y=y, x=x)


def _at_bottom(rng: Generator, placed: Placed, span: tuple[int, int], bottom: int) -> Placed:
    """With its lowest pixels just above the row `bottom`, somewhere between two columns."""
    thing = placed.thing
    _, width = painted_size(thing.outline, thing.scale)
    x = int(rng.integers(span[0], max(span[0], span[1] - width) + 1))
    foot = np.flatnonzero(paint(thing.outline, thing.scale, placed.kept, thing.mirrored).any(1))[-1]
    return replace(placed, y=bottom - 1 - int(foot), x=x)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
