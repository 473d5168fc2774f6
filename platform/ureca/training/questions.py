"""What nano's base learns to answer: questions about a drawn scene by whole image, point, box and name.

The wording is unlike the labels' on purpose ("at the left, small: red striped wheel of blue car"), so that
stages 1 and 2 have something to do. A question never sees a mask. Answers name place and size first: they can be
read off the question's own location tokens, and finding them is what teaches the model to look there.

    image   what is in the picture?       red house, blue car, blue car.
    point   what is at <p137> <p138>?     at the left, small: yellow round knob of brown door of red house.
    box     what fills <p034> <p190>?     at the left, large: red irregular smooth house.
    where   where is the red house?       <p034> <p190>.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ureca.model.processor import BOX_QUERY, GRID, IMAGE_QUERY, location_token
from ureca.regions.rle import decode_rle, rle_bbox
from ureca.scenes import Scene

POINTS_ASKED = (1, 4, 8, 8)
"""How many points of a region a question names, where it has so many. Several are easier to learn from than one: at
the start an answer's attention is spread evenly, and what finds the region gets that many times the gradient."""

Kind = Literal["image", "point", "box", "where"]


@dataclass(frozen=True)
class Question:
    kind: Kind
    query: str
    answer: str
    region: int
    """Index of the region the answer is about; -1 for the whole image."""


def region_words(scene: Scene, index: int) -> str:
    """Own color, shape, texture and name of a region, then its ancestors' color and name."""
    region = scene.regions[index]
    own = region.attributes
    words = [own["color"], own["shape"], own["texture"], region.part or region.kind]
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


def region_map(scene: Scene) -> np.ndarray:
    """`(H, W)` int16: the deepest region at each pixel, -1 for background (children come after their parents)."""
    ids = np.full(scene.image.shape[:2], -1, dtype=np.int16)
    for index, region in enumerate(scene.regions):
        ids[decode_rle(region.segmentation)] = index
    return ids


def questions(scene: Scene, rng: np.random.Generator, *, points: int, boxes: int, wheres: int) -> list[Question]:
    """Draw questions about a scene: one on the whole image, then points, boxes and names."""
    tops = [i for i, region in enumerate(scene.regions) if region.parent < 0]
    names = [f"{scene.regions[i].attributes['color']} {scene.regions[i].kind}" for i in tops]
    out = [Question("image", IMAGE_QUERY, ", ".join(sorted(names)) + ".", -1)]
    height, width = scene.image.shape[:2]
    ids = region_map(scene)
    step_y, step_x = height // GRID, width // GRID
    cells = ids[step_y // 2 :: step_y, step_x // 2 :: step_x]
    # Regions are drawn evenly, then cells of each: small parts are asked about as often as large objects.
    seen = [np.flatnonzero(cells.ravel() == i) for i in range(len(scene.regions))]
    askable = [i for i, found in enumerate(seen) if len(found)]
    for i in rng.choice(askable, size=points):
        count = min(len(seen[i]), int(rng.choice(POINTS_ASKED)))
        where = " ".join(f"<p{cell:03d}>" for cell in np.sort(rng.choice(seen[i], size=count, replace=False)))
        answer = f"{place_words(scene, i)}: {region_words(scene, i)}."
        out.append(Question("point", f"what is at {where}?", answer, int(i)))
    for i in rng.choice(len(scene.regions), size=boxes):
        answer = f"{place_words(scene, i)}: {region_words(scene, i)}."
        out.append(Question("box", BOX_QUERY.format(box=box_tokens(scene, i)), answer, int(i)))
    unique = [i for i, name in zip(tops, names, strict=True) if Counter(names)[name] == 1]
    for i in rng.permutation(unique)[:wheres]:
        name = f"{scene.regions[i].attributes['color']} {scene.regions[i].kind}"
        out.append(Question("where", f"where is the {name}?", f"{box_tokens(scene, i)}.", int(i)))
    return out


def vocabulary_texts() -> list[str]:
    """Texts that nano's tokenizer is trained on: every word of the closed vocabulary, and common words of captions."""
    from ureca.attributes.vocabulary import COLORS, PLACES, SHADES, SHAPES, SIZES, TEXTURES
    from ureca.scenes import KIND_WORDS

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
