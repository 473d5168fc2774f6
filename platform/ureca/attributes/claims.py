"""Parse a caption's claims, and find the region that they fit best.

    "the small dark blue striped round part in the lower left, at the top of the large red object, the second
     from the left of two alike"
        size small, color dark blue, texture striped, shape round, noun part, place lower left,
        place_in_parent top, parent (size large, color red, noun object), order (2, "left", 2)

Words are looked up in the vocabulary and a short list of synonyms, without a grammar, so the incomplete sentences of a
small model still yield their claims. Text after "; it has" describes the parts and makes no claim about the region. A
place followed by "of the" and a noun is a place in the parent; any other place is one in the image.

Self-retrieval (a caption retrieves its own region) checks what the paper does not: URECA (arXiv 2504.05305) section 3
rewrites captions to be unique and never verifies it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import log
from typing import Literal

from ureca.attributes.measure import MOST, RegionAttributes
from ureca.attributes.vocabulary import COLORS, PLACES, SHADES, SHAPES, SIZES, TEXTURES, base_color

OrderBy = Literal["left", "top", "size"]

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RANKS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NOUNS = ("object", "part", "area")

ATTRIBUTES = ("color", "texture", "shape", "size", "place", "place_in_parent")
"""Attributes that `attribute_hits` reports, in the order of tables."""

_PLACE_NAMES = tuple(name for row in PLACES for name in row)
_SYNONYMS = {
    "grey": "gray",
    "violet": "purple",
    "turquoise": "teal",
    "cyan": "teal",
    "tan": "light brown",
    "circular": "round",
    "elongated": "thin",
    "big": "large",
    "center": "middle",
    "centre": "middle",
    "top left": "upper left",
    "top right": "upper right",
    "bottom left": "lower left",
    "bottom right": "lower right",
    "image": "picture",
    "photo": "picture",
    "thing": "object",
    "region": "area",
}


@dataclass(frozen=True)
class Order:
    """The `rank`-th (from 1) of `count` regions that the rest of the caption fits equally.

    Counted from the left, from the top, or by size, largest first. `count` 0: not stated.
    """

    rank: int
    by: OrderBy
    count: int


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Claims of a caption about its region; None where it makes none. Names are those of RegionAttributes."""

    noun: str | None = None
    color: str | None = None
    color2: str | None = None
    texture: str | None = None
    shape: str | None = None
    size: str | None = None
    place: str | None = None
    place_in_parent: str | None = None
    order: Order | None = None
    cell: tuple[int, int] | None = None
    """Column and row (from 1) of the centroid on the image's 9 x 9 grid."""
    parent: Claims | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def _any_of(words: Sequence[str]) -> str:
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_SYNONYM = re.compile(rf"\b{_any_of(tuple(_SYNONYMS))}\b")
_PARTS = re.compile(r"[;.:]|\b(it has|which has|having)\b")
_ORDER = re.compile(
    rf"\b(?:the )?(?:{_any_of(RANKS)} )?(largest|from (?:the )?(?:left|top))"
    rf"(?: of {_any_of(NUMBERS)})?(?: alike)?"
)
_CELL = re.compile(rf"\bcolumn {_any_of(NUMBERS)},? (?:and )?row {_any_of(NUMBERS)}\b")
_IN_PICTURE = re.compile(rf"\b{_any_of(_PLACE_NAMES)} of (?:the |a )?picture\b")
_IN_PARENT = re.compile(rf"\b{_any_of((*_PLACE_NAMES, MOST))} of (?:the |a |an )?(?=\w)")
_ORDER_COST = 0.01
_ONE_COLOR = rf"(dark |light )?{_any_of(tuple(COLORS))}\b"
_COLOR = re.compile(rf"\b{_ONE_COLOR}(?: and {_ONE_COLOR})?")


def parse_claims(text: str) -> Claims:
    """Parse the claims of `text` about its own region. Without any, the result is falsy."""
    text = _SYNONYM.sub(lambda match: _SYNONYMS[match[1]], re.sub(r"\s+", " ", text.lower()))
    order = cell = None
    if match := _ORDER.search(text):
        order = _parse_order(match)
    if match := _CELL.search(text):
        cell = (NUMBERS.index(match[1]) + 1, NUMBERS.index(match[2]) + 1)
    text = _PARTS.split(_CELL.sub(" ", _ORDER.sub(" ", text)), maxsplit=1)[0]
    return _parse_phrase(text, order, cell)


def _parse_order(match: re.Match[str]) -> Order:
    rank = RANKS.index(match[1]) + 1 if match[1] else 1
    count = NUMBERS.index(match[3]) + 1 if match[3] else 0
    return Order(rank, "size" if match[2] == "largest" else "left" if "left" in match[2] else "top", count)


def _parse_phrase(text: str, order: Order | None = None, cell: tuple[int, int] | None = None) -> Claims:
    text = _IN_PICTURE.sub(r"\1,", text)
    parent = place_in_parent = None
    if match := _IN_PARENT.search(text):
        place_in_parent = match[1]
        parent = _parse_phrase(text[match.end() :])
        text = text[: match.start()]
    color = color2 = None
    if match := _COLOR.search(text):
        color = _shade(match[1], match[2])
        color2 = _shade(match[3], match[4]) if match[4] else None
    return Claims(
        noun=_first(NOUNS, text),
        color=color,
        color2=color2,
        texture=_first(TEXTURES, text),
        shape=_first(SHAPES, text),
        size=_first(tuple(SIZES), text),
        place=_first(_PLACE_NAMES, text),
        place_in_parent=place_in_parent,
        order=order,
        cell=cell,
        parent=parent or None,
    )


def _shade(modifier: str | None, color: str) -> str:
    name = (modifier or "") + color
    return name if name in SHADES else color


def _first(words: Sequence[str], text: str) -> str | None:
    match = re.search(rf"\b{_any_of(words)}(?=\W|s\b|$)", text)
    return match[1] if match else None


def match_score(claims: Claims, index: int, regions: Sequence[RegionAttributes]) -> float:
    """Return the fraction of the claims that are true of `regions[index]` (0..1; no claims: 0).

    A shade of the same color, and a neighboring size, count half. Claims about the parent count half as much as the
    region's own. Order is not judged here, because it depends on which other regions fit.
    """
    judged = list(_judge(claims, index, regions))
    total = sum(weight for _, weight, _ in judged)
    return sum(weight * truth for _, weight, truth in judged) / total if total else 0.0


def untrue_claims(claims: Claims, index: int, regions: Sequence[RegionAttributes]) -> list[str]:
    """Return the names of claims that are not, or only partly, true of `regions[index]`; order is not judged here."""
    return [name for name, _, truth in _judge(claims, index, regions) if truth < 1]


def _judge(claims: Claims, index: int, regions: Sequence[RegionAttributes]) -> Iterator[tuple[str, float, float]]:
    """Yield (name, weight, truth in 0..1) of each claim."""
    region = regions[index]
    if claims.color:
        yield "color", 1.0, _same_color(claims.color, region.color)
    if claims.color2:
        yield "color2", 1.0, _same_color(claims.color2, region.color2) if region.color2 else 0.0
    if claims.size:
        steps = abs(list(SIZES).index(claims.size) - list(SIZES).index(region.size))
        yield "size", 1.0, (1.0, 0.5)[steps] if steps < 2 else 0.0
    for name in ("texture", "shape", "place", "place_in_parent", "noun", "cell"):
        if claimed := getattr(claims, name):
            yield name, 1.0, float(claimed == getattr(region, name))
    if claims.parent:
        if region.parent < 0:
            yield "parent", 0.5, 0.0
        else:
            for name, weight, truth in _judge(claims.parent, region.parent, regions):
                yield f"parent's {name}", weight / 2, truth


def _same_color(claimed: str, true: str) -> float:
    return 1.0 if claimed == true else 0.5 if base_color(claimed) == base_color(true) else 0.0


def fit_scores(claims: Claims, regions: Sequence[RegionAttributes]) -> list[float]:
    """Return how well the claims fit each region of an image (0..1), order included.

    An order ("the second from the left of three alike") selects among the regions that the rest fits best; the others
    lose less than any false claim costs. If their number differs from the claimed count, the order is ignored.
    """
    scores = [match_score(claims, index, regions) for index in range(len(regions))]
    best = max(scores, default=0.0)
    alike = [index for index, score in enumerate(scores) if score > best - 1e-9]
    if claims.order and claims.order.count in (0, len(alike)) and claims.order.rank <= len(alike):
        chosen = in_order(alike, claims.order.by, regions)[claims.order.rank - 1]
        for index in alike:
            if index != chosen:
                scores[index] -= _ORDER_COST
    return scores


def in_order(indices: Sequence[int], by: OrderBy, regions: Sequence[RegionAttributes]) -> list[int]:
    """`indices` sorted by their regions' centroids, from the left or from the top, or largest first."""
    return sorted(indices, key=lambda index: order_keys(regions[index])[by])


def order_keys(region: RegionAttributes) -> dict[OrderBy, float]:
    """Return the sort value per order: the centroid in 0..1; for size, a scale on which 0.1 is about a tenth."""
    return {"left": region.cx, "top": region.cy, "size": -log(region.share)}


def picked_region(text: str, regions: Sequence[RegionAttributes]) -> int | None:
    """Return the region that `text` fits best; None on a tie or without claims."""
    scores = fit_scores(parse_claims(text), regions)
    best = max(scores, default=0.0)
    fitting = [index for index, score in enumerate(scores) if score > best - 1e-9]
    return fitting[0] if best > 0 and len(fitting) == 1 else None


def picks_own_region(text: str, index: int, regions: Sequence[RegionAttributes]) -> bool:
    """Return True if `text`, the caption of `regions[index]`, fits that region better than any other.

    `regions` must hold all regions of the image: parents and orders are looked up there.
    """
    return picked_region(text, regions) == index


def attribute_hits(caption: str, reference: str, truth: Mapping[str, str]) -> dict[str, bool]:
    """Return, for each attribute, whether the caption states it correctly.

    Only attributes that the reference states and the truth knows are judged. `truth` maps names of ATTRIBUTES to words.
    An attribute that is not stated is wrong. A color is correct if its name matches without "dark " or "light ".
    """
    stated, expected = parse_claims(caption), parse_claims(reference)
    hits = {}
    for name in ATTRIBUTES:
        if name in truth and getattr(expected, name):
            claimed = getattr(stated, name) or ""
            hits[name] = base_color(claimed) == base_color(truth[name])
    return hits


def attribute_accuracy(caption: str, reference: str, truth: Mapping[str, str]) -> float | None:
    """Return the fraction of correct `attribute_hits`; None if no attribute is judged."""
    hits = attribute_hits(caption, reference, truth)
    return sum(hits.values()) / len(hits) if hits else None
