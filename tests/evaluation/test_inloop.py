"""Quick scores say what the full ones say."""

import pytest
from support.labeled_scenes import scene_row

from ureca.corpus.table import load_image
from ureca.evaluation.inloop import QUICK_METRICS, quick_scores, quick_sums, scores_of
from ureca.evaluation.metrics import CaptionScorer
from ureca.evaluation.uniqueness import ScoredCaption, attribute_statistics, picks_own, region_candidates


@pytest.fixture(scope="module")
def items(colorless):
    """A drawn scene's labels as captions: some right, some of the wrong color, one of another region, one empty."""
    row = scene_row(3)
    candidates = region_candidates(load_image(row), row)
    captions = [region.caption for region in row.regions]
    captions[1] = colorless(captions[1])
    captions[2] = captions[0]
    captions[3] = ""
    captions[4] = "Well: the blue-green, non-round thing's edge ..."
    return [
        ScoredCaption(caption, row.regions[index].caption, index, candidates) for index, caption in enumerate(captions)
    ]


def test_they_equal_the_scores_of_an_evaluation(items):
    with CaptionScorer() as scorer:
        full = scorer.score([item.caption for item in items], [[item.reference] for item in items])
    scores = quick_scores(items)
    assert scores["rouge_l"] == pytest.approx(full.corpus["rouge_l"], abs=1e-9)
    assert scores["attribute_accuracy"] == pytest.approx(attribute_statistics(items)["all"].total())
    assert scores["uniqueness"] == sum(map(picks_own, items)) / len(items)
    assert all(0 < score < 1 for score in scores.values())


def test_parts_add_up_to_the_whole(items):
    parts = [quick_sums(items[:2]), quick_sums(items[2:]), quick_sums([])]
    assert scores_of(parts) == pytest.approx(quick_scores(items))
    assert tuple(scores_of(parts)) == QUICK_METRICS
    means = [quick_scores(items[:2]), quick_scores(items[2:])]
    assert sum(each["rouge_l"] for each in means) / 2 != pytest.approx(quick_scores(items)["rouge_l"])


def test_what_nobody_knows_is_no_score():
    row = scene_row(4, known=False)
    candidates = region_candidates(load_image(row), row)
    item = ScoredCaption(row.regions[0].caption, row.regions[0].caption, 0, candidates)
    assert set(quick_scores([item])) == {"rouge_l", "uniqueness"}
    assert quick_scores([]) == {}
