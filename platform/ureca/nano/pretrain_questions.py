"""Pretraining questions about a synthetic scene, by whole image, point, box and name.

The wording deliberately differs from the labels' ("at the left, small: red striped wheel of blue car"), so that stages
1 and 2 have something to learn. A question has no mask. Answers start with place and size, which can be read from the
question's location tokens; finding them teaches the model to look there.

    image   what is in the picture?       red house, blue car, blue car.
    point   what is at <p0517> <p0518>?   at the left, small: yellow round smooth knob of brown door of red house.
    box     what fills <p0130> <p0752>?   at the left, large: red irregular smooth house.
    where   where is the red house?       <p0130> <p0752>.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ureca.model.processor import BOX_QUERY, GRID, IMAGE_QUERY, location_token
from ureca.nano.architecture import LOCATIONS
from ureca.nano.scenes.draw import Scene
from ureca.regions.rle import decode_rle, rle_bbox

POINTS_ASKED = (1, 4, 8, 8)
"""Number of points of a region in a question, if it has that many. Several are easier to learn from than one: at first
an answer's attention is uniform, and finding the region gets that many times the gradient."""

LISTED = 6
"""Maximum things in an answer about the whole image, largest first."""

Kind = Literal["image", "point", "box", "where"]


@dataclass(frozen=True)
class Question:
    kind: Kind
    query: str
    answer: str
    region: int
    """Index of the region the answer is about; -1 for the whole image."""


def region_words(scene: Scene, index: int) -> str:
    """Return color, shape, texture and name of a region, then its ancestors' color and name."""
    region = scene.regions[index]
    own = region.attributes
    words = [own[name] for name in ("color", "shape", "texture") if name in own] + [region.part or region.kind]
    parent = region.parent
    while parent >= 0:
        above = scene.regions[parent]
        words += ["of", above.attributes["color"], above.part or above.kind]
        parent = above.parent
    return " ".join(words)


def place_words(scene: Scene, index: int) -> str:
    own = scene.regions[index].attributes
    return f"at the {own['place']}, {own['size']}"


def box_tokens(scene: Scene, index: int) -> str:
    height, width = scene.image.shape[:2]
    x, y, w, h = rle_bbox(scene.regions[index].segmentation)
    last = 1e-6
    return (
        f"{location_token(x / width, y / height)} "
        f"{location_token(max((x + w) / width - last, 0.0), max((y + h) / height - last, 0.0))}"
    )


def cell_coverage(scene: Scene) -> np.ndarray:
    """Return `(regions, GRID, GRID)` float32: fraction of each cell of the location tokens' grid that a region
    covers."""
    height, width = scene.image.shape[:2]
    masks = np.stack([decode_rle(region.segmentation) for region in scene.regions])
    return masks.reshape(len(masks), GRID, height // GRID, GRID, width // GRID).mean((2, 4), dtype=np.float32)


def held_cells(coverage: np.ndarray) -> np.ndarray:
    """Return `(regions, cells)` bool: the cells that a region covers at least half, or else its best one."""
    flat = coverage.reshape(len(coverage), -1)
    held = flat >= 0.5
    best = flat.argmax(1)
    held[np.arange(len(flat)), best] |= ~held.any(1)
    return held


def questions(scene: Scene, rng: np.random.Generator, *, points: int, boxes: int, wheres: int) -> list[Question]:
    """Draw questions about a scene: one on the whole image, then points, boxes and names.

    A question by points is about the smallest region that holds them all, so several points select a whole thing and a
    single one its deepest part.
    """
    coverage = cell_coverage(scene)
    held, areas = held_cells(coverage), coverage.sum((1, 2))
    tops = sorted((i for i, region in enumerate(scene.regions) if region.parent < 0), key=lambda i: -areas[i])
    names = {i: f"{scene.regions[i].attributes['color']} {scene.regions[i].kind}" for i in tops}
    listed = sorted(names[i] for i in tops[:LISTED])
    out = [Question("image", IMAGE_QUERY, ", ".join(listed) + ".", -1)]

    def answer(i: int) -> str:
        return f"{place_words(scene, i)}: {region_words(scene, i)}."

    # Sample regions uniformly, then cells of each: small parts are asked about as often as large objects.
    for i in rng.choice(len(scene.regions), size=points):
        cells = np.flatnonzero(held[i])
        count = min(len(cells), int(rng.choice(POINTS_ASKED)))
        chosen = np.sort(rng.choice(cells, size=count, replace=False))
        holders = np.flatnonzero(held[:, chosen].all(1))
        named = int(holders[areas[holders].argmin()])
        where = " ".join(LOCATIONS[cell] for cell in chosen)
        out.append(Question("point", f"what is at {where}?", answer(named), named))
    for i in rng.choice(len(scene.regions), size=boxes):
        out.append(Question("box", BOX_QUERY.format(box=box_tokens(scene, i)), answer(i), int(i)))
    alone = [i for i in tops if list(names.values()).count(names[i]) == 1]
    for i in rng.permutation(alone)[:wheres]:
        out.append(Question("where", f"where is the {names[i]}?", f"{box_tokens(scene, i)}.", int(i)))
    return out


def vocabulary_texts() -> list[str]:
    """Return training texts of nano's tokenizer: every word of the closed vocabulary, and common words of captions."""
    from ureca.attributes.vocabulary import COLORS, PLACES, SHADES, SHAPES, SIZES, TEXTURES
    from ureca.nano.scenes.catalog import KIND_WORDS

    words = sorted(
        {
            word
            for name in (*SHADES, *COLORS, *SHAPES, *SIZES, *TEXTURES, *sum(PLACES, ()), *KIND_WORDS)
            for word in name.split()
        }
    )
    return [f"{word} {word}, {word}. {word}: {word};" for word in [*words, *COMMON_WORDS.split()] for _ in range(20)]


COMMON_WORDS = """
a an the this that it its is are was has have having with without of on in at to from by for and or but not
no one two three four five six seven eight nine ten first second third fourth fifth sixth seventh eighth
ninth tenth last only other others another same alike each every all both between among than more most less
least very part parts region regions object objects picture image area whole thing things piece pieces shape
color left right top bottom middle center upper lower above below under over near next beside inside outside
within around along across behind front edge edges corner side sides end large small larger smaller largest
smallest big bigger biggest tiny huge medium wide narrow tall short long thin thick round oval square
rectangular triangular irregular ring star shaped smooth striped checkered dotted speckled rough plain dark
darker darkest light lighter lightest bright pale red orange yellow green teal blue purple pink brown gray
black white what where which who fills describe name briefly detail so fits how many there belongs contains
containing holds holding belonging standing lying seen from counted counting row column grid cell smaller
bigger than background surface spot spots stripe stripes dot dots line lines patch patches
"""
