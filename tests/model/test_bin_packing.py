"""First-fit decreasing."""

from ureca.model.bin_packing import first_fit_decreasing


def test_first_fit_decreasing_fills_bins_longest_first():
    assert first_fit_decreasing([3, 7, 2, 5, 5], 10) == [[1, 0], [3, 4], [2]]


def test_first_fit_decreasing_gives_long_items_their_own_bin():
    assert first_fit_decreasing([4, 12, 4], 10) == [[1], [0, 2]]
    assert first_fit_decreasing([], 10) == []
