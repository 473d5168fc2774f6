"""The frozen benchmark: what is drawn today is what was frozen, and a difference is noticed and named."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ureca.nano.frozen_scenes import SEEDS, BenchmarkError, check_scenes, freeze, load_benchmark, region_strata
from ureca.nano.scenes.draw import Scene, draw_scene
from ureca.nano.scenes.files import image_id_of


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return [draw_scene(seed) for seed in (910_000_000, 910_000_001)]


def test_the_benchmark_is_drawn_as_it_was_frozen():
    scenes = load_benchmark()
    assert [scene.seed for scene in scenes] == list(SEEDS)
    assert len(scenes) == 128
    strata = region_strata()
    assert list(strata) == [image_id_of(seed) for seed in SEEDS]
    for scene in scenes:
        assert list(strata[image_id_of(scene.seed)]) == [region.region_id for region in scene.regions]
    found = {(name, value) for regions in strata.values() for each in regions.values() for name, value in each.items()}
    yes_or_no = {(name, value) for name in ("thin", "covered", "alike") for value in ("yes", "no")}
    assert found == {*yes_or_no, ("role", "thing"), ("role", "part"), ("role", "background")}


def test_rounding_of_pixels_is_no_difference(some: list[Scene]):
    frozen = json.loads(json.dumps(freeze(some)))
    noise = np.random.default_rng(0).integers(0, 2, some[1].image.shape, dtype=np.uint8)
    check_scenes([some[0], replace(some[1], image=np.minimum(some[1].image, 254) + noise)], frozen)


def test_another_word_of_the_truth_is_noticed(some: list[Scene]):
    region = some[1].regions[0]
    other = replace(region, attributes={**region.attributes, "place": "nowhere"})
    changed = replace(some[1], regions=(other, *some[1].regions[1:]))
    with pytest.raises(BenchmarkError, match="nano-1,.*910000001"):
        check_scenes([some[0], changed], freeze(some))


def test_another_picture_is_noticed(some: list[Scene]):
    image = some[0].image.copy()
    image[:64, :64] //= 2
    message = r"seed 910000000: its picture is not .* install the package that the scores are from"
    with pytest.raises(BenchmarkError, match=message):
        check_scenes([replace(some[0], image=image), some[1]], freeze(some))


def test_other_seeds_are_noticed(some: list[Scene]):
    with pytest.raises(BenchmarkError, match="seeds"):
        check_scenes(some[:1], freeze(some))
