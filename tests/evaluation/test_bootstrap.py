import numpy as np
import pytest

from ureca.evaluation.bootstrap import Bootstrap, Interval, mean_statistics


def drawn_scores(num_images, regions_per_image, spread_between, spread_within, seed):
    rng = np.random.default_rng(seed)
    image_ids = np.repeat(np.arange(num_images), regions_per_image)
    scores = rng.normal(0, spread_between, num_images)[image_ids]
    return image_ids.tolist(), scores + rng.normal(0, spread_within, len(image_ids))


def test_interval_of_independent_items_is_the_textbook_one():
    image_ids, scores = drawn_scores(400, 1, 1.0, 0.0, seed=1)
    interval = Bootstrap(image_ids).interval([mean_statistics(scores)])
    expected = 1.96 * scores.std() / np.sqrt(len(scores))
    assert interval.value == pytest.approx(scores.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.1)


def test_regions_of_one_image_do_not_count_as_independent():
    image_ids, scores = drawn_scores(60, 20, 1.0, 0.1, seed=2)
    over_images = Bootstrap(image_ids).interval([mean_statistics(scores)])
    over_regions = Bootstrap(list(range(len(scores)))).interval([mean_statistics(scores)])
    assert over_images.high - over_images.low > 3 * (over_regions.high - over_regions.low)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(200):
        image_ids, scores = drawn_scores(50, 4, 1.0, 1.0, seed)
        interval = Bootstrap(image_ids, seed=seed, num_resamples=400).interval([mean_statistics(scores)])
        held += interval.low <= 0 <= interval.high
    assert 0.90 <= held / 200 <= 0.99


def test_same_seed_same_interval_other_seed_another():
    image_ids, scores = drawn_scores(30, 3, 1.0, 1.0, seed=3)
    first, again, other = (Bootstrap(image_ids, seed=seed).interval([mean_statistics(scores)]) for seed in (5, 5, 6))
    assert first == again
    assert (other.low, other.high) != (first.low, first.high)
    assert other.value == first.value


def test_paired_difference_is_narrower_than_its_sides():
    image_ids, scores = drawn_scores(60, 5, 1.0, 0.1, seed=4)
    rng = np.random.default_rng(4)
    bootstrap = Bootstrap(image_ids)
    better = mean_statistics(scores + 0.2 + rng.normal(0, 0.05, len(scores)))
    difference = bootstrap.difference([better], [mean_statistics(scores)])
    assert difference.value == pytest.approx(0.2, abs=0.02)
    assert difference.low > 0.15
    side = bootstrap.interval([better])
    assert side.low < 0 < side.high, "the sides alone would not tell them apart"


def test_items_that_a_metric_does_not_apply_to_take_no_part():
    image_ids = ["a", "a", "b", "c"]
    interval = Bootstrap(image_ids).interval([mean_statistics([1.0, float("nan"), 0.5, float("nan")])])
    assert interval.value == 0.75
    assert interval.low == 0.5
    assert interval.high == 1.0
    assert Bootstrap(image_ids).interval([mean_statistics([float("nan")] * 4)]) is None


def test_several_runs_count_as_their_mean():
    image_ids, scores = drawn_scores(40, 3, 1.0, 0.1, seed=6)
    bootstrap = Bootstrap(image_ids)
    low, high = mean_statistics(scores - 0.1), mean_statistics(scores + 0.1)
    pooled, single = bootstrap.interval([low, high]), bootstrap.interval([mean_statistics(scores)])
    assert pooled.to_dict() == pytest.approx(single.to_dict())
    difference = bootstrap.difference([low, high], [low])
    assert difference.to_dict() == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert bootstrap.interval([]) is None
    assert bootstrap.difference([low], []) is None


def test_interval_as_dict():
    assert Interval(0.5, 0.4, 0.6).to_dict() == {"value": 0.5, "low": 0.4, "high": 0.6}


def test_no_images_is_refused():
    with pytest.raises(ValueError, match="no images"):
        Bootstrap([])
