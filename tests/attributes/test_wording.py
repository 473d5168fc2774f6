"""Claims in English, and parsing of these texts back into claims."""

import itertools
import random

import pytest

from ureca.attributes.claims import Claims, Order, parse_claims
from ureca.attributes.measure import GRID, MOST
from ureca.attributes.vocabulary import PLACES, SHADES, SHAPES, SIZES, TEXTURES, base_color
from ureca.attributes.wording import describe_claims, join_list

PLACE_NAMES = list(itertools.chain(*PLACES))


def any_claims(rng: random.Random, depth: int) -> Claims:
    def maybe(values):
        return rng.choice([None, *values])

    color = maybe(SHADES)
    others = [name for name in SHADES if color and base_color(name) != base_color(color)]
    parent = any_claims(rng, depth - 1) if depth else None
    return Claims(
        noun=rng.choice(["object", "part", "area"]),
        size=maybe(SIZES),
        color=color,
        color2=maybe(others) if color else None,
        texture=maybe(TEXTURES),
        shape=maybe(SHAPES),
        place=maybe(PLACE_NAMES),
        place_in_parent=rng.choice([*PLACE_NAMES, MOST]) if parent else None,
        parent=parent,
    )


@pytest.mark.parametrize("article", ["a", "the"])
@pytest.mark.parametrize("of_the_picture", [False, True])
def test_described_claims_parse_back(article, of_the_picture):
    rng = random.Random(0)
    for trial in range(500):
        claims = any_claims(rng, depth=trial % 3)
        text = describe_claims(claims, article=article, of_the_picture=of_the_picture)
        assert parse_claims(text) == claims, text


@pytest.mark.parametrize("by", ["left", "top", "size"])
def test_described_order_parses_back(by):
    for count in range(2, 11):
        for rank in range(1, count + 1):
            claims = Claims(noun="part", color="red", order=Order(rank, by, count))
            assert parse_claims(describe_claims(claims)) == claims


def test_described_cell_parses_back():
    for cell in itertools.product(range(1, GRID + 1), repeat=2):
        claims = Claims(noun="part", color="red", place="top", cell=cell)
        assert parse_claims(describe_claims(claims)) == claims


@pytest.mark.parametrize(
    ("claims", "article", "text"),
    [
        (Claims(noun="object", size="large", color="orange", shape="oval", place="left"), "a",
         "a large orange oval object on the left"),
        (Claims(noun="object", color="orange"), "a", "an orange object"),
        (Claims(noun="part", color="blue", place="lower left", place_in_parent="top",
                parent=Claims(noun="object", color="red")), "the",
         "the blue part in the lower left, at the top of the red object"),
        (Claims(noun="part", color="blue", place_in_parent=MOST, parent=Claims(noun="area", color="red")),
         "a",
         "a blue part making up most of the red area"),
        (Claims(noun="part", order=Order(1, "size", 2)), "the", "the part, the largest of two alike"),
    ],
)  # fmt: skip
def test_describe_claims_wording(claims, article, text):
    assert describe_claims(claims, article=article) == text


def test_join_list_reads_as_english():
    assert [join_list(items) for items in (["x"], ["x", "y"], ["x", "y", "z"])] == ["x", "x and y", "x, y and z"]
