"""Overlaps of masks compared with dense ones, and the pairs that boxes exclude."""

import numpy as np
import pytest

from ureca.regions.overlaps import containments, ious
from ureca.regions.rle import encode_mask, rle_areas, rle_bboxes


def nested_masks(seed: int) -> list[np.ndarray]:
    """Return ragged boxes of all sizes, largest first."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(25):
        y0, x0 = rng.integers(0, 25, 2)
        mask = np.zeros((40, 30), dtype=bool)
        mask[y0 : y0 + rng.integers(3, 40), x0 : x0 + rng.integers(3, 30)] = True
        masks.append(mask & (rng.random(mask.shape) < rng.choice([0.7, 1])))
    return sorted((mask for mask in masks if mask.any()), key=lambda mask: -mask.sum())


@pytest.mark.parametrize("at_least", [0.0, 0.5, 0.8, 1.0])
def test_overlaps_equal_dense_ones_above_the_threshold(at_least: float):
    num_given = num_left_out = 0
    for seed in range(20):
        masks = nested_masks(seed)
        rles = [encode_mask(mask) for mask in masks]
        areas = rle_areas(rles)
        shares = containments(rles, areas, rle_bboxes(rles), at_least=at_least)
        likeness = ious(shares, areas)
        for i, inner in enumerate(masks):
            for j, outer in enumerate(masks[:i]):
                common = (inner & outer).sum()
                if shares[i, j] or common / inner.sum() >= at_least:
                    assert shares[i, j] == common / inner.sum()
                    assert likeness[i, j] == common / (inner | outer).sum()
                    num_given += 1
                else:
                    num_left_out += 1
            assert not shares[i, i:].any()
    assert num_given > 500
    assert at_least == 0 or num_left_out > 500


@pytest.mark.parametrize("num_inside", range(1, 10))
def test_containments_keep_pairs_exactly_at_the_threshold(num_inside: int):
    outer, inner = np.zeros((2, 1, 100), dtype=bool)
    outer[0, :50] = True
    inner[0, 50 - num_inside : 60 - num_inside] = True
    rles = [encode_mask(outer), encode_mask(inner)]
    shares = containments(rles, rle_areas(rles), rle_bboxes(rles), at_least=num_inside / 10)
    assert shares[1, 0] == num_inside / 10


def test_containments_of_zero_and_one_mask():
    assert containments([], rle_areas([]), [], at_least=0.8).shape == (0, 0)
    one = [encode_mask(np.ones((3, 3), dtype=bool))]
    np.testing.assert_array_equal(containments(one, rle_areas(one), rle_bboxes(one), at_least=0.8), [[0.0]])
