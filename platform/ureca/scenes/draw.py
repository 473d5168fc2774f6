"""Draw a scene from a seed: things on a soft background, with masks, tree and attributes that are true exactly.

    seed -> cells (the picture is split at random) -> one thing per cell -> owner of each pixel -> colors

Every pixel belongs to one region (or to the background), so masks have no soft edges, things do not overlap,
a part lies inside its parent, and siblings share no pixel. In about half of the scenes two or three things
are alike but for their color, size, texture or place: there only the difference names one of them.
Shapes: H rows, W columns, K regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from ureca.attributes.vocabulary import COLORS, place_of, size_of
from ureca.errors import ConfigError
from ureca.regions.rle import Rle, encode_mask
from ureca.scenes.kinds import KINDS
from ureca.scenes.paint import color_distance, paint_background, paint_regions
from ureca.scenes.sketch import Sketch, members, paint, region_areas

MIN_SIDE_PX = 6
MIN_AREA_PX = 70
MAX_SHARE_OF_PARENT = 0.8
MIN_MAIN_SHARE = 0.5
ATTEMPTS = 200
GAP_PX = 3


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What a drawn scene holds."""

    height_px: int = 256
    width_px: int = 256
    min_objects: int = 3
    max_objects: int = 6
    min_regions: int = 8
    """Regions in all: things, parts and parts of parts."""
    max_regions: int = 24
    min_region_share: float = 0.003
    """Smallest region, as a share of the image's area; smaller parts are not drawn."""
    alike_share: float = 0.5
    """Share of scenes in which two or three things differ in one attribute only."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects:
            raise ConfigError(
                f"min_objects={self.min_objects}, max_objects={self.max_objects}: need 1 <= min <= max"
            )
        if not self.min_objects <= self.min_regions <= self.max_regions <= 200:
            raise ConfigError(
                f"min_regions={self.min_regions}, max_regions={self.max_regions}: "
                f"need min_objects ({self.min_objects}) <= min <= max <= 200"
            )
        if min(self.height_px, self.width_px) < 64:
            raise ConfigError(
                f"height_px={self.height_px}, width_px={self.width_px}: a scene needs at least 64 x 64 px"
            )


@dataclass(frozen=True)
class SceneRegion:
    """One region of a scene.

    `parent` is an index in `Scene.regions`, -1 for a whole thing. `attributes` has color, texture, shape, size,
    place (words of `ureca.attributes.vocabulary`), kind (of the whole thing), part (the region's own name, ""
    for a whole thing) and parent_kind (the parent's name, "" for a whole thing).
    """

    region_id: str
    parent: int
    depth: int
    kind: str
    part: str
    attributes: dict[str, str]
    segmentation: Rle


@dataclass(frozen=True)
class Scene:
    """`image` is uint8 (H, W, 3) RGB; in `regions` parents come before their children."""

    image: np.ndarray
    regions: tuple[SceneRegion, ...]
    seed: int


@dataclass(frozen=True)
class _Thing:
    """What a thing looks like; alike things share all but one of these fields.

    `palette` maps roles to color names; `texture` (name, second color) covers the pieces of role "main".
    """

    sketch: Sketch
    palette: dict[str, str]
    texture: tuple[str, str]
    scale: float
    mirrored: bool


def draw_scene(seed: int, config: SceneConfig = SceneConfig()) -> Scene:  # noqa: B008 (frozen)
    """The scene of a seed: the same bytes in every process.

    Raises ConfigError where the size and counts of `config` do not go together.
    """
    rng = np.random.default_rng(seed)
    for _ in range(ATTEMPTS):
        scene = _draw_once(rng, seed, config)
        if scene is not None:
            return scene
    raise ConfigError(
        f"No scene with {config.min_regions} to {config.max_regions} regions fits {config.height_px} x "
        f"{config.width_px} px (seed {seed}); allow fewer regions, a smaller min_region_share or a larger image"
    )


def _draw_once(rng: Generator, seed: int, config: SceneConfig) -> Scene | None:
    """One attempt; None where counts or the difference of alike things came out wrong."""
    cells = _split_cells(rng, config)
    backdrop = paint_background(rng, config.height_px, config.width_px)
    names = [name for name, rgb in COLORS.items() if color_distance(rgb, backdrop.mean_rgb) > 95]
    groups = _group_sizes(rng, len(cells), config.alike_share)
    kinds = rng.permutation(list(KINDS))
    order = rng.permutation(len(cells))

    height, width = config.height_px, config.width_px
    owner = np.zeros((height, width), np.uint8)
    regions: list[SceneRegion] = []
    colors: list[str] = []
    textures: list[tuple[str, str] | None] = []
    scales: list[float] = []
    for kind, group in zip(kinds, groups, strict=False):
        boxes = [cells[order[k]] for k in group]
        things = _alike_things(rng, str(kind), boxes, names)
        smallest = min(things, key=lambda thing: thing.scale)
        kept = _kept_pieces(smallest, config)
        if kept is None:
            return None
        told_apart: list[tuple[str, ...]] = []
        for thing, box in zip(things, boxes, strict=True):
            local = paint(thing.sketch, thing.scale, kept, thing.mirrored)
            textured = _textured_piece(local, thing)
            y0, x0 = _drop_in(rng, box, local.shape)
            base = len(regions)
            if base + len(kept) > config.max_regions:
                return None
            index_of = {piece: base + rank for rank, piece in enumerate(sorted(kept))}
            lookup = np.zeros(len(thing.sketch.pieces) + 1, np.uint8)
            for piece, index in index_of.items():
                lookup[piece + 1] = index + 1
            owner[y0 : y0 + local.shape[0], x0 : x0 + local.shape[1]] = lookup[local]
            for piece in sorted(kept):
                mask = np.zeros((height, width), bool)
                inside = np.isin(local, [m + 1 for m in members(thing.sketch)[piece]])
                mask[y0 : y0 + local.shape[0], x0 : x0 + local.shape[1]] = inside
                parent = thing.sketch.pieces[piece].parent
                regions.append(
                    _region(regions, mask, thing, piece, index_of.get(parent, -1), textured, local, inside)
                )
                colors.append(thing.palette[thing.sketch.pieces[piece].role])
                textures.append(thing.texture if piece in textured else None)
                scales.append(thing.scale)
            told = regions[base].attributes
            told_apart.append(tuple(told[key] for key in ("color", "size", "texture", "place")))
        if not _differ(told_apart):
            return None
    if len(regions) < config.min_regions:
        return None
    image = paint_regions(rng, backdrop, owner, colors, textures, scales)
    return Scene(image, tuple(regions), seed)


def _split_cells(rng: Generator, config: SceneConfig) -> list[tuple[int, int, int, int]]:
    """Split the picture at random into one cell (x0, y0, x1, y1) per thing; the largest is split next."""
    cells = [(0, 0, config.width_px, config.height_px)]
    wanted = int(rng.integers(config.min_objects, config.max_objects + 1))
    while len(cells) < wanted:
        cells.sort(key=lambda c: (c[2] - c[0]) * (c[3] - c[1]))
        x0, y0, x1, y1 = cells.pop()
        share = rng.uniform(0.38, 0.62)
        if (x1 - x0) * rng.uniform(0.8, 1.25) > y1 - y0:
            cut = round(x0 + share * (x1 - x0))
            cells += [(x0, y0, cut, y1), (cut, y0, x1, y1)]
        else:
            cut = round(y0 + share * (y1 - y0))
            cells += [(x0, y0, x1, cut), (x0, cut, x1, y1)]
    return cells


def _group_sizes(rng: Generator, num_things: int, alike_share: float) -> list[list[int]]:
    """Things by number, alike ones in one group."""
    alike = 1
    if num_things >= 2 and rng.random() < alike_share:
        alike = int(rng.integers(2, min(3, num_things) + 1))
    return [list(range(alike)), *([k] for k in range(alike, num_things))]


def _alike_things(
    rng: Generator, kind: str, boxes: Sequence[tuple[int, int, int, int]], names: list[str]
) -> list[_Thing]:
    """One thing per box; the second and third differ from the first in one attribute, or in place only."""
    sketch = KINDS[kind](rng)
    fits = [
        min(y1 - y0 - 2 * GAP_PX, (x1 - x0 - 2 * GAP_PX) / sketch.ratio) * rng.uniform(0.8, 1.0)
        for x0, y0, x1, y1 in boxes
    ]
    palette: dict[str, str] = {}
    for piece in sketch.pieces:
        if piece.role not in palette:
            palette[piece.role] = _pick_color(rng, names, sketch, palette, piece.parent)
    first = _Thing(sketch, palette, _pick_texture(rng, palette["main"]), min(fits), bool(rng.random() < 0.5))
    things = [first]
    if len(boxes) > 1:
        difference = str(rng.choice(["color", "color", "size", "texture", "place"]))
        for _ in boxes[1:]:
            things.append(_changed(rng, difference, things, names))
    return things


def _changed(rng: Generator, difference: str, things: list[_Thing], names: list[str]) -> _Thing:
    """A thing like the first of `things` but for one attribute that none of them has."""
    first = things[0]
    if difference == "color":
        taken = set(first.palette.values()) | {thing.palette["main"] for thing in things} | {first.texture[1]}
        free = [name for name in names if name not in taken]
        if free:
            return replace(first, palette={**first.palette, "main": str(rng.choice(free))})
    if difference == "size" and len(things) == 1:
        return replace(first, scale=first.scale * 0.6)
    if difference == "texture":
        other = _pick_texture(rng, first.palette["main"])
        if all(other[0] != thing.texture[0] for thing in things):
            return replace(first, texture=other)
    return first


def _pick_color(
    rng: Generator, names: list[str], sketch: Sketch, palette: dict[str, str], parent: int
) -> str:
    """A color far from the parent's; pieces that touch the background keep away from its color too."""
    if parent < 0:
        return str(rng.choice(names))
    above = palette[sketch.pieces[parent].role]
    on_top = sketch.pieces[parent].parent >= 0
    free = [
        name for name in (COLORS if on_top else names) if color_distance(COLORS[name], COLORS[above]) > 100
    ]
    unused = [name for name in free if name not in palette.values()]
    return str(rng.choice(unused or free))


def _pick_texture(rng: Generator, main: str) -> tuple[str, str]:
    """Texture of the main pieces and its second color."""
    name = "smooth"
    if rng.random() < 0.55:
        name = str(rng.choice(["striped", "checkered", "dotted", "speckled"]))
    far = [other for other, rgb in COLORS.items() if color_distance(rgb, COLORS[main]) > 130]
    return name, str(rng.choice(far))


def _kept_pieces(thing: _Thing, config: SceneConfig) -> frozenset[int] | None:
    """The pieces that are large enough at this scale, and leave their parents' color the main one."""
    sketch = thing.sketch
    smallest = max(MIN_AREA_PX, config.min_region_share * config.height_px * config.width_px * 1.03)
    kept = set(range(len(sketch.pieces)))
    groups = members(sketch)
    while True:
        owner = paint(sketch, thing.scale, frozenset(kept), thing.mirrored)
        own, whole = region_areas(owner, sketch)
        bad = None
        for piece in sorted(kept, reverse=True):
            mask = np.isin(owner, [m + 1 for m in groups[piece]])
            rows, columns = mask.any(1).sum(), mask.any(0).sum()
            parent = sketch.pieces[piece].parent
            if whole[piece] < smallest or min(rows, columns) < MIN_SIDE_PX:
                bad = piece
            elif parent >= 0 and whole[piece] > MAX_SHARE_OF_PARENT * whole[parent]:
                bad = piece
            else:
                role = sketch.pieces[piece].role
                main = sum(own[m] for m in groups[piece] if m in kept and sketch.pieces[m].role == role)
                if main < MIN_MAIN_SHARE * whole[piece]:
                    bad = max(m for m in groups[piece] if m in kept)
            if bad is not None:
                break
        if bad is None:
            return frozenset(kept)
        if bad == 0:
            return None
        kept -= set(groups[bad])


def _textured_piece(owner: np.ndarray, thing: _Thing) -> set[int]:
    """Pieces that carry the texture: those of role "main", if large and little covered by parts."""
    if thing.texture[0] == "smooth":
        return set()
    sketch = thing.sketch
    own, whole = region_areas(owner, sketch)
    carriers = {
        index
        for index, piece in enumerate(sketch.pieces)
        if piece.role == "main" and own[index] >= max(900, 0.6 * whole[index])
    }
    covered = sum(own[index] for index in carriers)
    return carriers if covered >= 0.55 * whole[0] else set()


def _drop_in(rng: Generator, box: tuple[int, int, int, int], shape: tuple[int, ...]) -> tuple[int, int]:
    """Upper left corner (y, x) of a thing of this shape at a random place inside its cell."""
    x0, y0, x1, y1 = box
    y = int(rng.integers(y0 + GAP_PX, max(y0 + GAP_PX, y1 - GAP_PX - shape[0]) + 1))
    x = int(rng.integers(x0 + GAP_PX, max(x0 + GAP_PX, x1 - GAP_PX - shape[1]) + 1))
    return y, x


def _region(
    regions: list[SceneRegion],
    mask: np.ndarray,
    thing: _Thing,
    piece: int,
    parent: int,
    textured: set[int],
    local: np.ndarray,
    inside: np.ndarray,
) -> SceneRegion:
    """The region of a piece, with its true attributes."""
    sketch = thing.sketch
    this = sketch.pieces[piece]
    ys, xs = np.nonzero(mask)
    height, width = mask.shape
    covered = np.isin(local[inside], [m + 1 for m in textured]).mean() if textured else 0.0
    part = this.name if parent >= 0 else ""
    attributes = {
        "color": thing.palette[this.role],
        "texture": thing.texture[0] if covered >= 0.55 else "smooth",
        "shape": this.shape,
        "size": size_of(len(ys) / mask.size),
        "place": place_of((xs.mean() + 0.5) / width, (ys.mean() + 0.5) / height),
        "kind": sketch.pieces[0].name,
        "part": part,
        "parent_kind": sketch.pieces[this.parent].name if parent >= 0 else "",
    }
    depth = regions[parent].depth + 1 if parent >= 0 else 0
    return SceneRegion(
        str(len(regions) + 1), parent, depth, sketch.pieces[0].name, part, attributes, encode_mask(mask)
    )


def _differ(told_apart: list[tuple[str, ...]]) -> bool:
    """Whether color, size, texture and place together name each of the alike things."""
    return len(set(told_apart)) == len(told_apart)
