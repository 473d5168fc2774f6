"""Numeric meaning of the vocabulary's words."""

import pytest

from ureca.attributes.vocabulary import COLORS, SHADES, base_color, place_of, size_of


@pytest.mark.parametrize(
    ("cx", "cy", "place"),
    [(0.0, 0.0, "upper left"), (0.5, 0.5, "middle"), (0.34, 0.1, "top"), (1.0, 1.0, "lower right")],
)
def test_place_of_uses_thirds_of_width_and_height(cx, cy, place):
    assert place_of(cx, cy) == place


@pytest.mark.parametrize(
    ("share", "size"), [(0.0005, "tiny"), (0.01, "small"), (0.0299, "small"), (0.1, "large"), (1.0, "huge")]
)
def test_size_of_starts_at_its_threshold(share, size):
    assert size_of(share) == size


def test_shades_belong_to_colors():
    assert {base_color(name) for name in SHADES} == set(COLORS)
