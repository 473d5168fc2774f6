"""Seeds, strata and attributes by size, on statistics whose scores are known."""

import numpy as np
import pytest

from ureca.evaluation.aggregate import PAIRS, scored_group
from ureca.evaluation.bootstrap import Bootstrap, mean_statistics, share_statistics

IMAGES = ["a", "a", "b", "c"]
STRATA = [
    {"size": "tiny", "depth": "0"},
    {"size": "large", "depth": "1"},
    {"size": "tiny", "depth": "1", "covered": "yes"},
    {"size": "large", "depth": "0"},
]


def run(right):
    """A run that gets the color of these items right (1) or wrong (0); two attributes are asked of the second."""
    asked = np.array([1, 2, 1, 1])
    right = np.array(right)
    return {
        "rouge_l": mean_statistics(right / asked),
        "attribute_accuracy": share_statistics(right, asked),
        "attribute:color": share_statistics(np.minimum(right, 1), np.ones(4)),
        "attribute:shape": share_statistics(np.maximum(right - 1, 0), asked - 1),
    }


@pytest.fixture(scope="module")
def group():
    statistics = {
        "none": {0: run([0, 0, 0, 0])},
        "mask_stage2": {3: run([1, 2, 0, 1]), 1: run([1, 1, 1, 1])},
    }
    return scored_group(Bootstrap(IMAGES), statistics, run([1, 2, 1, 1]), STRATA)


def test_a_score_is_the_mean_of_its_seeds_which_stand_beside_it_with_their_spread(group):
    assert group.scores["mask_stage2"]["rouge_l"]["value"] == pytest.approx((0.75 + 0.875) / 2)
    assert {seed: of["rouge_l"]["value"] for seed, of in group.seeds["mask_stage2"].items()} == {3: 0.75, 1: 0.875}
    assert group.spread == {"mask_stage2": {"rouge_l": [0.75, 0.875], "attribute_accuracy": [0.8, 0.8]}}


def test_differences_are_between_means_of_seeds(group):
    found = {(each["better"], each["worse"], each["metric"]): each["value"] for each in group.differences}
    assert found == {
        ("mask_stage2", "none", "rouge_l"): pytest.approx(0.8125),
        ("mask_stage2", "none", "attribute_accuracy"): pytest.approx(0.8),
    }
    assert [worse for better, worse in PAIRS if better == "mask_stage2"] == [
        *("none", "box", "tuned_none", "tuned_box", "mask_stage1"),
    ]
    assert [worse for better, worse in PAIRS if better == "mask_stage3"] == ["mask_stage2", "mask_longer"]


def test_accuracy_is_told_by_attribute_and_size(group):
    assert list(group.attributes_by_size["mask_stage2"]) == ["tiny", "large"]
    assert group.attributes_by_size["mask_stage2"]["tiny"] == {"color": 0.75, "all": 0.75}
    large = group.attributes_by_size["mask_stage2"]["large"]
    assert large == {"color": 1.0, "shape": 0.5, "all": pytest.approx((1 + 2 / 3) / 2)}
    assert group.attributes_by_size["labels"]["large"]["all"] == 1.0


def test_strata_count_their_regions_and_score_them_alone(group):
    assert {value: of["regions"] for value, of in group.strata["depth"].items()} == {"0": 2, "1": 2}
    top, part = (group.strata["depth"][depth]["scores"]["mask_stage2"] for depth in ("0", "1"))
    assert top["rouge_l"]["value"] == 1.0
    assert part["rouge_l"]["value"] == pytest.approx((0.5 + 0.75) / 2)
    assert group.strata["depth"]["0"]["scores"]["labels"]["attribute_accuracy"]["value"] == 1.0
    assert group.strata["covered"]["yes"]["regions"] == 1
    assert group.strata["covered"]["yes"]["scores"]["mask_stage2"]["rouge_l"]["value"] == 0.5
