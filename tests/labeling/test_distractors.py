"""Which regions may be mistaken for each other."""

from dataclasses import replace

import numpy as np
import pytest

from ureca.attributes.measure import RegionAttributes, measure_tree
from ureca.errors import ConfigError
from ureca.labeling.distractors import DistractorConfig, find_distractors
from ureca.scenes import draw_scene


def with_features(parents: list[int], angles: list[float]) -> list[RegionAttributes]:
    """Regions whose looks differ by the given angles, in degrees."""
    scene = draw_scene(0)
    plain = measure_tree(scene.image, [scene.regions[0].segmentation], [-1])[0]
    turns = np.radians(angles)
    return [
        replace(plain, parent=parent, features=np.array([np.cos(turn), np.sin(turn)]))
        for parent, turn in zip(parents, turns, strict=True)
    ]


def indices(found):
    return [[distractor.index for distractor in distractors] for distractors in found]


def test_alike_regions_are_found_most_alike_first():
    regions = with_features([-1, -1, -1, -1], [0, 20, 10, 90])
    found = find_distractors(regions, DistractorConfig(min_similarity=0.9))
    assert indices(found) == [[2, 1], [2, 0], [0, 1], []]
    assert found[0][0].similarity == pytest.approx(np.cos(np.radians(10)))
    assert found[0][0].told_apart_by is None


def test_ancestors_and_descendants_are_left_out():
    regions = with_features([-1, 0, 1, 0], [0, 0, 0, 0])
    assert indices(find_distractors(regions, DistractorConfig())) == [[], [3], [3], [1, 2]]


def test_no_more_than_the_count():
    regions = with_features([-1] * 5, [0, 1, 2, 3, 4])
    assert indices(find_distractors(regions, DistractorConfig(max_count=2)))[0] == [1, 2]
    assert indices(find_distractors(regions, DistractorConfig(max_count=0)))[0] == []


def test_an_image_without_regions_has_none():
    assert find_distractors([], DistractorConfig()) == []


def test_things_drawn_alike_are_each_other_s_distractors():
    """In scenes with two or three things of one kind, color and size, those find each other."""
    found, expected = 0, 0
    for seed in range(30):
        scene = draw_scene(seed)
        regions = measure_tree(
            scene.image,
            [region.segmentation for region in scene.regions],
            [region.parent for region in scene.regions],
        )
        distractors = indices(find_distractors(regions, DistractorConfig()))
        for i, one in enumerate(scene.regions):
            for j, other in enumerate(scene.regions):
                same = all(one.attributes[k] == other.attributes[k] for k in ("color", "texture", "shape", "size"))
                if i != j and same and one.parent == other.parent == -1 and one.kind == other.kind:
                    expected += 1
                    found += j in distractors[i]
    assert expected >= 10
    assert found / expected >= 0.9


@pytest.mark.parametrize("wrong", [{"min_similarity": 1.5}, {"max_count": -1}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"distractors.{next(iter(wrong))}="):
        DistractorConfig(**wrong)
