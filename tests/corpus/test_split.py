"""Held-out images: by image, stable, never all or none."""

import pytest

from ureca.corpus.split import split_heldout
from ureca.errors import ConfigError

IDS = [f"sa_{number}" for number in range(5000)]


def test_share_is_met_and_order_kept():
    split = split_heldout(IDS, 0.2)
    assert len(split.heldout) == pytest.approx(1000, abs=100)
    assert sorted(split.train + split.heldout) == sorted(IDS)
    assert split.train == [image_id for image_id in IDS if image_id in set(split.train)]


def test_an_image_keeps_its_side_when_others_come_or_go():
    heldout = set(split_heldout(IDS, 0.2).heldout)
    assert set(split_heldout(reversed(IDS[:1000]), 0.2).heldout) == heldout & set(IDS[:1000])


def test_larger_share_holds_out_the_same_images_and_more():
    assert set(split_heldout(IDS, 0.1).heldout) < set(split_heldout(IDS, 0.3).heldout)


def test_seed_chooses_others():
    assert set(split_heldout(IDS, 0.2, seed=1).heldout) != set(split_heldout(IDS, 0.2).heldout)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.8, 0.999])
def test_small_corpora_have_both_sides(share: float):
    for start in range(0, 100, 2):
        for num in (2, 6):
            split = split_heldout(IDS[start : start + num], share)
            assert split.train
            assert split.heldout


def test_borders():
    assert split_heldout(IDS, 0).heldout == []
    assert split_heldout(IDS, 1).train == []
    assert split_heldout([], 0.5) == ([], [])
    with pytest.raises(ConfigError, match="heldout=1.2:.*0.*1"):
        split_heldout(IDS, 1.2)
