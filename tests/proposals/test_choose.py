"""Selection of proposed masks."""

import numpy as np

from ureca.proposals.choose import choose_masks
from ureca.proposals.config import ProposalConfig
from ureca.regions.rle import decode_rle, encode_mask


def box(top, left, bottom, right):
    mask = np.zeros((100, 100), bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


def frame():
    mask = decode_rle(box(10, 10, 50, 50))
    mask[16:44, 16:44] = False
    return encode_mask(mask)


EVERYTHING = ProposalConfig(min_area_share=0.0, max_area_share=1.0)


def test_choose_masks_keeps_the_better_of_two_duplicates():
    small, large = box(10, 10, 50, 50), box(9, 9, 51, 51)
    assert [mask.segmentation for mask in choose_masks([small, large], EVERYTHING)] == [small]
    assert [mask.segmentation for mask in choose_masks([large, small], EVERYTHING)] == [large]
    strict = ProposalConfig(min_area_share=0.0, max_area_share=1.0, max_iou=0.95)
    assert len(choose_masks([small, large], strict)) == 2, "their IoU is 0.91"


def test_choose_masks_keeps_parts_that_fill_their_whole_s_box():
    whole, pane = box(10, 10, 50, 50), box(12, 10, 38, 50)
    kept = choose_masks([whole, frame(), pane], EVERYTHING)
    assert [mask.segmentation for mask in kept] == [whole, pane, frame()]


def test_choose_masks_takes_the_best_and_numbers_by_size():
    ranked = [box(0, 0, 10, 10), box(20, 20, 60, 60), box(70, 70, 90, 90)]
    kept = choose_masks(ranked, ProposalConfig(max_regions=2))
    assert [(mask.region_id, mask.segmentation) for mask in kept] == [("1", ranked[1]), ("2", ranked[0])]


def test_choose_masks_drops_too_small_and_too_large_masks():
    ranked = [box(0, 0, 100, 99), box(0, 0, 5, 5), box(50, 50, 80, 80)]
    kept = choose_masks(ranked, ProposalConfig(min_area_share=0.01, max_area_share=0.9))
    assert [mask.segmentation for mask in kept] == ranked[2:]
