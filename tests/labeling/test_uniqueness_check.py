"""Uniqueness check by claims."""

from dataclasses import replace

import pytest

from ureca.attributes.measure import measure_tree
from ureca.corpus.schema import Distractor
from ureca.labeling.uniqueness_check import verify_caption
from ureca.nano.scenes.draw import draw_scene


@pytest.fixture
def regions():
    scene = draw_scene(1)
    plain = measure_tree(scene.image, [scene.regions[0].segmentation], [-1])[0]
    red = replace(plain, color="red", shape="round", size="small", place="top", cx=0.2)
    return [red, replace(red, color="blue"), replace(red, cx=0.8), replace(red, place="left")]


DISTRACTORS = tuple(Distractor(index=index, similarity=0.95) for index in (1, 2))


def test_verify_caption_uniqueness_is_share_ruled_out(regions):
    verdict = verify_caption("the red round object at the top", 0, regions, DISTRACTORS)
    assert verdict.uniqueness == 0.5
    assert verdict.confused_with == (2,)
    assert [distractor.told_apart_by for distractor in verdict.distractors] == ["color", None]


def test_verify_caption_order_claim_rules_out_equal_region(regions):
    caption = "the red round object at the top, the first from the left of two alike"
    verdict = verify_caption(caption, 0, regions, DISTRACTORS)
    assert (verdict.uniqueness, verdict.confused_with) == (1.0, ())
    assert [distractor.told_apart_by for distractor in verdict.distractors] == ["color", "order"]


def test_verify_caption_wrong_rank_fits_other_region(regions):
    caption = "the red round object at the top, the second from the left of two alike"
    verdict = verify_caption(caption, 0, regions, DISTRACTORS)
    assert (verdict.uniqueness, verdict.confused_with) == (0.5, (2,))


def test_verify_caption_confused_with_region_not_a_distractor(regions):
    verdict = verify_caption("the red round object", 0, regions, DISTRACTORS[:1])
    assert verdict.uniqueness == 1.0
    assert verdict.confused_with == (2, 3)


def test_verify_caption_no_distractors_has_no_uniqueness(regions):
    assert verify_caption("the red round object at the top", 0, regions[:1], ()).uniqueness is None


def test_verify_caption_without_claims_fits_all(regions):
    verdict = verify_caption("something", 0, regions, DISTRACTORS)
    assert (verdict.uniqueness, verdict.confused_with) == (0.0, (1, 2, 3))
