"""Draw a scene from a seed: things on a soft background, with exact masks, tree and attributes.

    seed -> cells (the picture is split at random) -> one thing per cell -> owner of each pixel -> colors

Every pixel belongs to one region (or to the background), so masks have no soft edges, things do not overlap,
a part lies inside its parent, and siblings share no pixel. In about half of the scenes two or three things
are alike but for their color, size, texture or place: there only the difference names one of them.
Shapes: H rows, W columns, K regions.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from ureca.attributes.vocabulary import COLORS, place_of, size_of
from ureca.errors import ConfigError
from ureca.regions.rle import Rle, encode_mask
from ureca.scenes.kinds import KINDS
from ureca.scenes.paint import PLAIN, Coat, color_distance, paint_background, paint_regions
from ureca.scenes.sketch import Piece, paint, painted_size, piece_tables
from ureca.scenes.things import (
    GAP_PX,
    MIN_TEXTURED_SHARE,
    Box,
    Thing,
    alike_things,
    kept_pieces,
    textured_pieces,
)

ATTEMPTS = 200


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
        if not 1 <= self.min_objects <= self.max_objects <= len(KINDS):
            raise ConfigError(
                f"min_objects={self.min_objects}, max_objects={self.max_objects}: "
                f"need 1 <= min <= max <= {len(KINDS)}, the number of kinds"
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

    `parent` is an index in `Scene.regions`, -1 for a whole thing. `attributes` has color, texture, shape,
    size, place (words of `ureca.attributes.vocabulary`), kind (of the whole thing), part (the region's own
    name, "" for a whole thing) and parent_kind (the parent's name, "" for a whole thing).
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
        f"{config.width_px} px (seed {seed}); allow fewer regions, "
        "smaller ones (min_region_share) or a larger image"
    )


def _draw_once(rng: Generator, seed: int, config: SceneConfig) -> Scene | None:
    """One attempt; None where counts or the difference of alike things came out wrong."""
    height, width = config.height_px, config.width_px
    cells = _split_cells(rng, config)
    backdrop = paint_background(rng, height, width)
    names = [name for name, rgb in COLORS.items() if color_distance(rgb, backdrop.mean_rgb) > 95]
    kinds = iter(rng.permutation(list(KINDS)).tolist())
    canvas = _Canvas(np.zeros((height, width), np.uint8))
    for group in _groups(rng, cells, config.alike_share):
        for kind in kinds:
            things = alike_things(rng, kind, group, names)
            smallest = min(things, key=lambda thing: thing.scale)
            # A tenth of slack: the same piece may lose some pixels to rounding at another scale.
            kept = kept_pieces(smallest, 1.1 * config.min_region_share * height * width)
            if kept is not None:
                break
        else:
            return None
        if len(canvas.regions) + len(things) * len(kept) > config.max_regions:
            return None
        # Decided on the smallest for all: alike things differ in nothing but the one attribute.
        textured = textured_pieces(smallest, kept)
        wholes = [
            canvas.add(thing, kept, textured, *_corner(rng, thing, box))
            for thing, box in zip(things, group, strict=True)
        ]
        if len({_seen_attributes(whole) for whole in wholes}) < len(wholes):
            return None
    if len(canvas.regions) < config.min_regions:
        return None
    return Scene(paint_regions(rng, backdrop, canvas.owner, canvas.coats), tuple(canvas.regions), seed)


@dataclass
class _Canvas:
    """What has been drawn; `owner` is uint8 (H, W): 0 = background, k + 1 = region k."""

    owner: np.ndarray
    regions: list[SceneRegion] = field(default_factory=list)
    coats: list[Coat] = field(default_factory=list)

    def add(self, thing: Thing, kept: frozenset[int], textured: frozenset[int], y0: int, x0: int) -> SceneRegion:
        """Draw a thing with its upper left corner at (y0, x0); returns the whole thing's region.

        `textured` are the pieces that carry its texture.
        """
        sketch = thing.sketch
        local = paint(sketch, thing.scale, kept, thing.mirrored)
        carries_texture = np.isin(np.arange(len(sketch.pieces) + 1), [piece + 1 for piece in textured])
        tables = piece_tables(sketch)
        window = np.s_[y0 : y0 + local.shape[0], x0 : x0 + local.shape[1]]
        labels = np.zeros(len(sketch.pieces) + 1, np.uint8)
        index_of = {-1: -1}
        for piece in sorted(kept):
            this = sketch.pieces[piece]
            index_of[piece] = len(self.regions)
            labels[piece + 1] = len(self.regions) + 1
            inside = tables[piece][local]
            mask = np.zeros(self.owner.shape, bool)
            mask[window] = inside
            texture = thing.texture if carries_texture[local[inside]].mean() >= MIN_TEXTURED_SHARE else PLAIN
            self._add_region(thing, this, index_of[this.parent], texture.name, mask)
            coat = Coat(thing.palette[this.role], thing.texture if piece in textured else PLAIN, thing.scale)
            self.coats.append(coat)
        self.owner[window] = labels[local]
        return self.regions[index_of[0]]

    def _add_region(self, thing: Thing, piece: Piece, parent: int, texture: str, mask: np.ndarray) -> None:
        """Append the region of a piece, with its true attributes."""
        height, width = mask.shape
        ys, xs = np.nonzero(mask)
        kind = thing.sketch.pieces[0].name
        part = piece.name if parent >= 0 else ""
        attributes = {
            "color": thing.palette[piece.role],
            "texture": texture,
            "shape": piece.shape,
            "size": size_of(len(ys) / mask.size),
            "place": place_of((xs.mean() + 0.5) / width, (ys.mean() + 0.5) / height),
            "kind": kind,
            "part": part,
            "parent_kind": thing.sketch.pieces[piece.parent].name if parent >= 0 else "",
        }
        depth = self.regions[parent].depth + 1 if parent >= 0 else 0
        region_id = str(len(self.regions) + 1)
        self.regions.append(SceneRegion(region_id, parent, depth, kind, part, attributes, encode_mask(mask)))


def _seen_attributes(region: SceneRegion) -> tuple[str, ...]:
    return tuple(region.attributes[key] for key in ("color", "texture", "size", "place"))


def _corner(rng: Generator, thing: Thing, box: Box) -> tuple[int, int]:
    """Upper left corner (y, x) of a thing at a random place inside its cell."""
    x0, y0, x1, y1 = box
    height, width = painted_size(thing.sketch, thing.scale)
    y = int(rng.integers(y0 + GAP_PX, max(y0 + GAP_PX, y1 - GAP_PX - height) + 1))
    x = int(rng.integers(x0 + GAP_PX, max(x0 + GAP_PX, x1 - GAP_PX - width) + 1))
    return y, x


def _split_cells(rng: Generator, config: SceneConfig) -> list[Box]:
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


def _groups(rng: Generator, cells: list[Box], alike_share: float) -> list[list[Box]]:
    """Cells in random order, those of alike things in one group."""
    shuffled = [cells[index] for index in rng.permutation(len(cells))]
    alike = 1
    if len(cells) >= 2 and rng.random() < alike_share:
        alike = int(rng.integers(2, min(3, len(cells)) + 1))
    return [shuffled[:alike], *([cell] for cell in shuffled[alike:])]
