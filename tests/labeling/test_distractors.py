"""Selection of distractors."""

import numpy as np
import pytest

from ureca.attributes.measure import measure_tree
from ureca.errors import ConfigError
from ureca.labeling.distractors import DistractorConfig, find_distractors
from ureca.nano.scenes.draw import draw_scene


def rotated_features(*degrees: float) -> np.ndarray:
    """Features (R, 2) that differ by the given angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def indices(found):
    return [[distractor.index for distractor in distractors] for distractors in found]


def test_find_distractors_sorts_by_similarity():
    found = find_distractors(rotated_features(0, 20, 10, 90), [-1] * 4, DistractorConfig(min_similarity=0.9))
    assert indices(found) == [[2, 1], [2, 0], [0, 1], []]
    assert found[0][0].similarity == pytest.approx(np.cos(np.radians(10)))
    assert found[0][0].told_apart_by is None


def test_find_distractors_related_includes_ancestors():
    features, parents = rotated_features(0, 0, 0, 0), [-1, 0, 1, 0]
    assert indices(find_distractors(features, parents, DistractorConfig())) == [[], [3], [3], [1, 2]]
    related = indices(find_distractors(features, parents, DistractorConfig(related=True)))
    assert related == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_find_distractors_respects_max_count():
    features, parents = rotated_features(0, 1, 2, 3, 4), [-1] * 5
    assert indices(find_distractors(features, parents, DistractorConfig(max_count=2)))[0] == [1, 2]
    assert indices(find_distractors(features, parents, DistractorConfig(max_count=0)))[0] == []


def test_find_distractors_no_regions_returns_empty():
    assert find_distractors(np.empty((0, 1)), [], DistractorConfig()) == []


def test_find_distractors_equal_drawn_objects_are_found():
    """Objects of one kind, color and size in a scene find each other."""
    found, expected = 0, 0
    for seed in range(30):
        scene = draw_scene(seed)
        parents = [region.parent for region in scene.regions]
        regions = measure_tree(scene.image, [region.segmentation for region in scene.regions], parents)
        features = np.stack([region.features for region in regions])
        distractors = indices(find_distractors(features, parents, DistractorConfig()))
        for i, first in enumerate(scene.regions):
            for j, second in enumerate(scene.regions):
                same = all(first.attributes[k] == second.attributes[k] for k in ("color", "texture", "shape", "size"))
                if i != j and same and first.parent == second.parent == -1 and first.kind == second.kind:
                    expected += 1
                    found += j in distractors[i]
    assert expected >= 10
    assert found / expected >= 0.9


@pytest.mark.parametrize("wrong", [{"min_similarity": 1.5}, {"max_count": -1}])
def test_distractor_config_out_of_range_raises(wrong):
    with pytest.raises(ConfigError, match=f"distractors.{next(iter(wrong))}="):
        DistractorConfig(**wrong)


def test_find_distractors_default_threshold_depends_on_features():
    features = rotated_features(0, 40)  # cosine 0.77
    assert indices(find_distractors(features, [-1] * 2, DistractorConfig())) == [[], []]
    assert indices(find_distractors(features, [-1] * 2, DistractorConfig(), kind="dinov2")) == [[1], [0]]
