"""Describer without a model: states in plain English what was measured from pixels and masks.

    short    a small blue round part at the top of the red object
    long     a small blue smooth round part in the lower left of the picture, at the top of the large red
             object; it has two white round parts at its bottom
    unique   the small blue round part in the lower left, at the top of the red object, the second from the
             left of two alike

The unique caption is the shortest one that fits no other region of the image: words are added only where they tell
regions apart, then an order among those still alike, then a grid cell. Captions state only what was measured, and the
same image always gets the same captions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ureca.attributes.claims import NUMBERS, Claims, Order, OrderBy, in_order, match_score, order_keys
from ureca.attributes.measure import MOST, RegionAttributes
from ureca.attributes.wording import at_place, describe_claims, join_list, with_article
from ureca.labeling.describers.base import Describer, DescribeRequest, Description

MAX_LONG_WORDS = 40

_CLEARLY_APART: dict[OrderBy, float] = {"left": 0.02, "top": 0.02, "size": 0.2}
"""Minimum step between neighbors in an order: a share of the picture's side, or about a fifth in size."""

Regions = Sequence[RegionAttributes]


class AttributesDescriber(Describer):
    """States measured attributes; deterministic, about a millisecond per region."""

    name = "attributes"
    model = None
    prompt_version = "attributes-1"
    uses_model = False

    async def check(self) -> None:
        """Do nothing: this describer has no dependencies."""

    async def close(self) -> None:
        """Do nothing: this describer holds no resources."""

    async def describe(self, request: DescribeRequest) -> Description:
        regions, index = request.attributes, request.index
        if request.pass_name == "short":
            return Description(describe_claims(_short_claims(index, regions)))
        if request.pass_name == "long":
            return Description(_long_caption(index, request.children, regions))
        claims = _unique_claims(index, regions, say_all=bool(request.confused_with))
        return Description(describe_claims(claims, article="the"))


def _looks(region: RegionAttributes) -> Claims:
    """Return the claims of every caption: size, color, shape, and texture if there is a visible one."""
    return Claims(
        noun=region.noun,
        size=region.size,
        color=region.color,
        texture=None if region.texture == "smooth" else region.texture,
        shape=region.shape,
    )


def _in_parent(claims: Claims, region: RegionAttributes, regions: Regions) -> Claims:
    if region.parent < 0:
        return claims
    parent = regions[region.parent]
    return replace(
        claims,
        place_in_parent=region.place_in_parent,
        parent=Claims(noun=parent.noun, color=parent.color),
    )


def _short_claims(index: int, regions: Regions) -> Claims:
    region = regions[index]
    if region.parent < 0:
        return replace(_looks(region), place=region.place)
    return _in_parent(_looks(region), region, regions)


def _long_caption(index: int, children: Sequence[int], regions: Regions) -> str:
    region = regions[index]
    claims = _in_parent(
        replace(_looks(region), texture=region.texture, color2=region.color2, place=region.place),
        region,
        regions,
    )
    if claims.parent:
        claims = replace(claims, parent=replace(claims.parent, size=regions[region.parent].size))
    text = describe_claims(claims, of_the_picture=True)
    groups = _child_groups(children, regions)
    for count in range(len(groups), 0, -1):
        more = sum(size for _, size in groups[count:])
        rest = [f"{_number(more)} more part{'s' if more > 1 else ''}"] if more else []
        whole = f"{text}; it has {join_list([phrase for phrase, _ in groups[:count]] + rest)}"
        if len(whole.split()) <= MAX_LONG_WORDS:
            return whole
    return text


def _number(count: int) -> str:
    return NUMBERS[count - 1] if count <= len(NUMBERS) else str(count)


def _child_groups(children: Sequence[int], regions: Regions) -> list[tuple[str, int]]:
    """Group similar children; return (phrase, count), e.g. "two small black round parts at its top"."""
    groups: dict[tuple[str, str, str], list[RegionAttributes]] = {}
    for child in children:
        region = regions[child]
        groups.setdefault((region.size, region.color, region.shape), []).append(region)
    phrases = []
    for (size, color, shape), members in groups.items():
        noun_phrase = f"{size} {color} {shape} part"
        places = {member.place_in_parent for member in members}
        place = places.pop() if len(places) == 1 else None
        many = len(members) > 1
        phrase = f"{_number(len(members))} {noun_phrase}s" if many else with_article(noun_phrase, "a")
        if place:
            phrase += " over most of it" if place == MOST else f" {at_place(place, owner='its')}"
        phrases.append((phrase, len(members)))
    return phrases


@dataclass(frozen=True)
class _Extra:
    """An additional claim, and the number of words it takes."""

    num_words: int
    add: Callable[[Claims], Claims]


def _unique_claims(index: int, regions: Regions, *, say_all: bool) -> Claims:
    """Return the fewest claims that are true of `regions[index]` only; `say_all` returns all that help."""
    region = regions[index]
    base = _in_parent(replace(_looks(region), place=region.place), region, regions)
    extras = list(_extras(region, regions))
    alike = _alike(base, index, regions)
    if not alike:
        return base
    best, fewest = base, alike
    for chosen in sorted(_subsets(extras), key=lambda subset: sum(extra.num_words for extra in subset)):
        claims = base
        for extra in chosen:
            claims = extra.add(claims)
        left = [other for other in alike if match_score(claims, other, regions) == 1.0]
        if not left:
            return claims
        if len(left) < len(fewest):
            best, fewest = claims, left
    order = _order(index, fewest, regions)
    if order:
        best = replace(best, order=order)
    if say_all or not order:
        best = replace(best, cell=region.cell)
    return best


def _alike(claims: Claims, index: int, regions: Regions) -> list[int]:
    """Return the other regions of which all claims are true."""
    return [j for j in range(len(regions)) if j != index and match_score(claims, j, regions) == 1.0]


def _extras(region: RegionAttributes, regions: Regions) -> Iterator[_Extra]:
    if region.texture == "smooth":
        yield _Extra(1, lambda claims: replace(claims, texture="smooth"))
    if region.color2:
        yield _Extra(len(region.color2.split()) + 1, lambda claims: replace(claims, color2=region.color2))
    if region.parent < 0:
        return
    parent = regions[region.parent]

    def of_parent(**more: object) -> Callable[[Claims], Claims]:
        def add(claims: Claims) -> Claims:
            assert claims.parent is not None
            return replace(claims, parent=replace(claims.parent, **more))  # type: ignore[arg-type]

        return add

    yield _Extra(1, of_parent(size=parent.size))
    yield _Extra(1, of_parent(shape=parent.shape))
    if parent.texture not in (None, "smooth"):
        yield _Extra(1, of_parent(texture=parent.texture))
    if parent.parent < 0:
        yield _Extra(3, of_parent(place=parent.place))
    else:
        above = regions[parent.parent]
        grandparent = Claims(noun=above.noun, color=above.color)
        yield _Extra(6, of_parent(place_in_parent=parent.place_in_parent, parent=grandparent))


def _subsets(extras: Sequence[_Extra]) -> Iterator[tuple[_Extra, ...]]:
    for count in range(1, len(extras) + 1):
        yield from combinations(extras, count)


def _order(index: int, alike: Sequence[int], regions: Regions) -> Order | None:
    """Return the region's rank among similar ones, from the side that separates them most clearly, else by size."""
    group = [index, *alike]
    if len(group) > len(NUMBERS):
        return None
    clearest, best = 1.0, None
    for by, step in _CLEARLY_APART.items():
        ordered = in_order(group, by, regions)
        keys = [order_keys(regions[k])[by] for k in ordered]
        clearness = min(after - before for before, after in zip(keys, keys[1:], strict=False)) / step
        if clearness > clearest and not (by == "size" and best):
            clearest, best = clearness, Order(ordered.index(index) + 1, by, len(group))
    return best
