"""Which regions may be mistaken for each other."""

import numpy as np
import pytest

from ureca.attributes.measure import measure_tree
from ureca.errors import ConfigError
from ureca.labeling.distractors import DistractorConfig, find_distractors
from ureca.nano.scenes.draw import draw_scene


def turned(*degrees: float) -> np.ndarray:
    """Features (R, 2) whose looks differ by the given angles."""
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1)


def indices(found):
    return [[distractor.index for distractor in distractors] for distractors in found]


def test_alike_regions_are_found_most_alike_first():
    found = find_distractors(turned(0, 20, 10, 90), [-1] * 4, DistractorConfig(min_similarity=0.9))
    assert indices(found) == [[2, 1], [2, 0], [0, 1], []]
    assert found[0][0].similarity == pytest.approx(np.cos(np.radians(10)))
    assert found[0][0].told_apart_by is None


def test_ancestors_and_descendants_are_left_out_unless_asked_for():
    features, parents = turned(0, 0, 0, 0), [-1, 0, 1, 0]
    assert indices(find_distractors(features, parents, DistractorConfig())) == [[], [3], [3], [1, 2]]
    of_all = indices(find_distractors(features, parents, DistractorConfig(related=True)))
    assert of_all == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_no_more_than_the_count():
    features, parents = turned(0, 1, 2, 3, 4), [-1] * 5
    assert indices(find_distractors(features, parents, DistractorConfig(max_count=2)))[0] == [1, 2]
    assert indices(find_distractors(features, parents, DistractorConfig(max_count=0)))[0] == []


def test_an_image_without_regions_has_none():
    assert find_distractors(np.empty((0, 1)), [], DistractorConfig()) == []


def test_things_drawn_alike_are_each_other_s_distractors():
    """In scenes with two or three things of one kind, color and size, those find each other."""
    found, expected = 0, 0
    for seed in range(30):
        scene = draw_scene(seed)
        parents = [region.parent for region in scene.regions]
        regions = measure_tree(scene.image, [region.segmentation for region in scene.regions], parents)
        features = np.stack([region.features for region in regions])
        distractors = indices(find_distractors(features, parents, DistractorConfig()))
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
