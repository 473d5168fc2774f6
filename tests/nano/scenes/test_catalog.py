"""The kinds: each has parts and its names are listed."""

import numpy as np
import pytest

from ureca.nano.scenes.areas import AREA_NAMES
from ureca.nano.scenes.catalog import KIND_WORDS, KINDS
from ureca.nano.scenes.outline import Outline, paint, region_areas


def variants(kind: str) -> list[Outline]:
    return [KINDS[kind](np.random.default_rng(seed)) for seed in range(20)]


def test_every_name_of_a_region_is_listed():
    drawn = {piece.name for kind in KINDS for outline in variants(kind) for piece in outline.pieces}
    assert drawn | set(AREA_NAMES) == set(KIND_WORDS)
    assert len(KIND_WORDS) == len(set(KIND_WORDS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_thing_shows_all_its_pieces_and_mostly_its_main_color(kind: str):
    for outline in variants(kind):
        everything = frozenset(range(len(outline.pieces)))
        own, whole = region_areas(paint(outline, 250, everything, mirrored=False), outline)
        assert (whole > 0).all()
        main = sum(own[i] for i, piece in enumerate(outline.pieces) if piece.role == "main")
        assert main >= 0.5 * whole[0]


def test_mirroring_turns_the_picture_and_nothing_else():
    outline = KINDS["fish"](np.random.default_rng(0))
    everything = frozenset(range(len(outline.pieces)))
    plain = paint(outline, 80, everything, mirrored=False)
    mirrored = paint(outline, 80, everything, mirrored=True)
    assert (plain != mirrored).any()
    assert (plain[:, ::-1] == mirrored).all()
