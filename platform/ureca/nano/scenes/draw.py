"""Draw a scene from a seed: things in front of a background, with exact masks, tree and attributes.

    seed -> areas of the background -> cells and their content (layout) -> visible parts (compose) -> colors (paint)

Every pixel belongs to one region (or to the soft background), so masks have hard edges and cover the visible part: a
thing in front of another takes its pixels. A part lies inside its parent, as does a thing in a box; siblings share no
pixel. In about half of the scenes two or three things are equal except for color, size, texture or place: only the
difference identifies one of them. Shapes: H rows, W columns, K regions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from ureca.attributes.shapes import shape_of
from ureca.attributes.vocabulary import COLORS, place_of, size_of
from ureca.errors import ConfigError
from ureca.nano.scenes.areas import GROUNDS, Areas, colors_apart, draw_areas, no_areas
from ureca.nano.scenes.catalog import KINDS
from ureca.nano.scenes.compose import Composition, Placed, Seen, compose
from ureca.nano.scenes.layout import THINGS_IN, Arrangement, Supply, arrange, split_cells
from ureca.nano.scenes.paint import color_distance, paint_areas, paint_background, paint_regions
from ureca.regions.rle import Rle, encode_mask

SCENES_VERSION = "2"
"""Incremented whenever the image or the truth of any seed changes."""

ATTEMPTS = 200
ATTEMPTS_PER_PLAN = 25
CROWDED_OBJECTS = (8, 12)
"""Minimum and maximum things in a crowded scene."""
MIN_AREA_SHARE = 0.03
"""Least visible share of the picture of an area of the background."""
MIN_COLORS = 6
"""Fewest colors that stand out from the background."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Content of a synthetic scene."""

    height_px: int = 256
    width_px: int = 256
    min_objects: int = 3
    """Whole things, including those inside others, without background areas."""
    max_objects: int = 7
    min_regions: int = 8
    """Regions in all: things, parts, parts of parts, and areas of the background."""
    max_regions: int = 40
    min_region_share: float = 0.003
    """Minimum region, as a fraction of the image's area; smaller parts are not regions."""
    alike_share: float = 0.5
    """Share of scenes in which two or three things differ in one attribute only."""
    crowded_share: float = 0.15
    """Fraction of scenes with 8 to 12 things, regardless of min_objects and max_objects."""
    areas_share: float = 0.5
    """Share of scenes whose background is divided into areas that are regions."""
    covered_share: float = 0.38
    """Share of scenes in which a thing partly covers another, where there is room for it."""
    related_share: float = 0.5
    """Share of scenes in which things stand on a table or shelf, or lie in a box, bowl or frame, likewise."""

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

    `parent` is an index in `Scene.regions`, -1 at the top level. `kind` is that of the whole thing, or the name of an
    area; `part` is the name of the region, "" for a whole thing or an area. A whole thing inside another has that one,
    or a part of it, as its parent.

    `attributes` has color, texture, shape, size, place (words of `ureca.attributes.vocabulary`), kind, part,
    parent_kind (the parent's name, "" at the top level), and for whole things relation ("on", "inside", "in front of"
    or "") with related_kind. All describe the visible part: a partly hidden disc has the shape of its visible half.

    `seen_share` is the visible fraction of its pixels; `alike` marks things, and their parts, that differ from others
    of their kind in one attribute; `is_area` marks background areas.
    """

    region_id: str
    parent: int
    depth: int
    kind: str
    part: str
    attributes: dict[str, str]
    segmentation: Rle
    seen_share: float = 1.0
    alike: bool = False
    is_area: bool = False


@dataclass(frozen=True)
class Scene:
    """`image` is uint8 (H, W, 3) RGB; in `regions` parents come before their children."""

    image: np.ndarray
    regions: tuple[SceneRegion, ...]
    seed: int


def draw_scene(seed: int, config: SceneConfig = SceneConfig()) -> Scene:  # noqa: B008 (frozen)
    """Draw the scene of a seed: the same bytes in every process.

    Raises ConfigError if the size and counts of `config` are incompatible.
    """
    rng = np.random.default_rng(seed)
    for attempt in range(ATTEMPTS):
        # A plan is tried several times, or those that rarely succeed (crowded ones) would become rare.
        if attempt % ATTEMPTS_PER_PLAN == 0:
            plan = _plan(rng, config)
        scene = _draw_once(rng, seed, config, plan)
        if scene is not None:
            return scene
    raise ConfigError(
        f"No scene with {config.min_regions} to {config.max_regions} regions fits {config.height_px} x "
        f"{config.width_px} px (seed {seed}); allow fewer regions, "
        "smaller ones (min_region_share) or a larger image"
    )


@dataclass(frozen=True)
class _Plan:
    """Plan of a scene before anything has a place."""

    arrangements: tuple[Arrangement, ...]
    num_cells: int
    num_alike: int
    has_areas: bool


def _draw_once(rng: Generator, seed: int, config: SceneConfig, plan: _Plan) -> Scene | None:
    """Run one attempt; return None if counts or the difference of alike things are wrong."""
    height, width = config.height_px, config.width_px
    backdrop = paint_background(rng, height, width)
    areas = draw_areas(rng, height, width) if plan.has_areas else no_areas(height, width)
    colors = colors_apart(areas.coats)
    if not areas.owner.all():
        colors = [name for name in colors if color_distance(COLORS[name], backdrop.mean_rgb) > 95]
    if len(colors) < MIN_COLORS:
        return None
    supply = Supply(
        rng.permutation(list(KINDS)).tolist(), colors, config.min_region_share * height * width, height, width
    )
    cells = split_cells(rng, height, width, plan.num_cells)
    placed = arrange(rng, supply, cells, plan.arrangements, plan.num_alike)
    if placed is None:
        return None
    composition = compose(placed, height, width, supply.smallest_px)
    if composition is None:
        return None
    regions = _thing_regions(placed, composition, areas)
    area_regions = _area_regions(areas, composition.owner, len(regions))
    if area_regions is None:
        return None
    regions += area_regions
    if not config.min_regions <= len(regions) <= config.max_regions:
        return None
    alike = [_seen_attributes(region) for region in regions if region.alike and region.depth == 0]
    if len(set(alike)) < len(alike):
        return None
    backdrop = paint_areas(rng, backdrop, areas.owner, areas.coats)
    return Scene(paint_regions(rng, backdrop, composition.owner, composition.coats), tuple(regions), seed)


def _plan(rng: Generator, config: SceneConfig) -> _Plan:
    low, high = config.min_objects, config.max_objects
    if rng.random() < config.crowded_share:
        low, high = CROWDED_OBJECTS
    wanted = int(rng.integers(low, high + 1))
    alike = rng.random() < config.alike_share and wanted >= 2
    num_alike = int(rng.integers(2, min(3, wanted) + 1)) if alike else 0
    candidates: list[Arrangement] = []
    if rng.random() < config.covered_share:
        candidates += ["covered"] * int(rng.integers(1, 3))
    if rng.random() < config.related_share:
        candidates.append(("carried", "carried two", "contained", "contained")[int(rng.integers(4))])
    arrangements: list[Arrangement] = []
    room = wanted - num_alike
    for arrangement in candidates:
        if THINGS_IN[arrangement] <= room:
            arrangements.append(arrangement)
            room -= THINGS_IN[arrangement]
    has_areas = bool(rng.random() < config.areas_share)
    return _Plan(tuple(arrangements), len(arrangements) + num_alike + room, num_alike, has_areas)


def _thing_regions(placed: list[Placed], composition: Composition, areas: Areas) -> list[SceneRegion]:
    """Return the regions of things and their parts, with true attributes."""
    regions: list[SceneRegion] = []
    for seen in composition.regions:
        mask = seen.mask(*composition.owner.shape)
        of = placed[seen.placed]
        kind = of.thing.outline.pieces[0].name
        relation, related = _relation(placed, seen, mask, areas, composition.owner)
        above = regions[seen.parent] if seen.parent >= 0 else None
        attributes = {
            "color": of.thing.palette[seen.piece.role],
            "texture": seen.texture,
            # A partly hidden region has the shape of its visible part.
            "shape": seen.piece.shape if seen.seen_share == 1 else shape_of(mask),
            **_size_and_place(mask),
            "kind": kind,
            "part": "" if seen.is_whole else seen.piece.name,
            "parent_kind": (above.part or above.kind) if above else "",
            "relation": relation,
            "related_kind": related,
        }
        regions.append(
            SceneRegion(
                region_id=str(len(regions) + 1),
                parent=seen.parent,
                depth=above.depth + 1 if above else 0,
                kind=kind,
                part=attributes["part"],
                attributes=attributes,
                segmentation=encode_mask(mask),
                seen_share=seen.seen_share,
                alike=of.alike,
                is_area=False,
            )
        )
    return regions


def _relation(placed: list[Placed], seen: Seen, mask: np.ndarray, areas: Areas, owner: np.ndarray) -> tuple[str, str]:
    """Return the relation of a whole thing to another thing or an area, and its kind; empty if there is none."""
    of = placed[seen.placed]
    if not seen.is_whole:
        return "", ""
    if of.inside:
        return "inside", placed[of.inside[0]].thing.outline.pieces[0].name
    if of.relation:
        return of.relation, placed[of.related].thing.outline.pieces[0].name
    ys, xs = np.nonzero(mask)
    below = min(int(ys.max()) + 1, mask.shape[0] - 1), int(np.median(xs[ys == ys.max()]))
    area = int(areas.owner[below]) if owner[below] == 0 else 0
    return ("on", areas.names[area - 1]) if area and areas.names[area - 1] in GROUNDS else ("", "")


def _area_regions(areas: Areas, owner: np.ndarray, start: int) -> list[SceneRegion] | None:
    """Return background regions: the visible part of each area; None if too little of one is visible."""
    regions: list[SceneRegion] = []
    for index, (name, coat) in enumerate(zip(areas.names, areas.coats, strict=True)):
        whole = areas.owner == index + 1
        mask = whole & (owner == 0)
        if mask.mean() < MIN_AREA_SHARE:
            return None
        attributes = {
            "color": coat.color,
            "texture": coat.texture.name,
            "shape": shape_of(mask),
            **_size_and_place(mask),
            "kind": name,
            "part": "",
            "parent_kind": "",
            "relation": "",
            "related_kind": "",
        }
        regions.append(
            SceneRegion(
                region_id=str(start + index + 1),
                parent=-1,
                depth=0,
                kind=name,
                part="",
                attributes=attributes,
                segmentation=encode_mask(mask),
                seen_share=float(mask.sum() / whole.sum()),
                alike=False,
                is_area=True,
            )
        )
    return regions


def _size_and_place(mask: np.ndarray) -> dict[str, str]:
    height, width = mask.shape
    rows, columns = mask.sum(1), mask.sum(0)
    area = rows.sum()
    cx, cy = columns @ np.arange(width) / area, rows @ np.arange(height) / area
    place = place_of((cx + 0.5) / width, (cy + 0.5) / height)
    return {"size": size_of(area / mask.size), "place": place}


def _seen_attributes(region: SceneRegion) -> tuple[str, ...]:
    return tuple(region.attributes[key] for key in ("color", "texture", "size", "place"))
