import dataclasses

import pytest
from support.labeled_scenes import SENTENCE, scene_row

from ureca.corpus.table import load_image
from ureca.evaluation.uniqueness import ScoredCaption, attribute_statistics, picks_own, region_candidates


@pytest.fixture(scope="module")
def row():
    return scene_row(3)


@pytest.fixture(scope="module")
def candidates(row):
    return region_candidates(load_image(row), row)


def about(row, candidates, index, caption):
    return ScoredCaption(caption, row.regions[index].caption, index, candidates)


def test_a_true_label_has_full_attribute_accuracy(row, candidates):
    items = [about(row, candidates, index, region.caption) for index, region in enumerate(row.regions)]
    statistics = attribute_statistics(items)
    assert statistics["all"].total() == 1.0
    assert {name for name, each in statistics.items() if each.total() == 1.0} >= {"color", "texture", "shape"}


def test_one_wrong_word_of_five_costs_a_fifth(row, candidates):
    true = dict(row.regions[0].attributes)
    wrong = SENTENCE.format(**{**true, "color": "green" if true["color"] != "green" else "red"})
    statistics = attribute_statistics([about(row, candidates, 0, wrong)])
    assert statistics["all"].total() == pytest.approx(0.8)
    assert statistics["color"].total() == 0.0
    assert statistics["shape"].total() == 1.0


def test_saying_nothing_is_no_way_to_be_right(row, candidates):
    assert attribute_statistics([about(row, candidates, 0, "a nice thing")])["all"].total() == 0.0


def test_a_false_label_is_not_made_true_by_repeating_it(row, candidates):
    true = dict(row.regions[0].attributes)
    false = SENTENCE.format(**{**true, "shape": "triangular" if true["shape"] != "triangular" else "round"})
    statistics = attribute_statistics([ScoredCaption(false, false, 0, candidates)])
    assert statistics["shape"].total() == 0.0


def test_photos_have_no_attribute_accuracy():
    row = scene_row(4, known=False)
    candidates = region_candidates(load_image(row), row)
    assert candidates.truth == (None,) * len(row.regions)
    total = attribute_statistics([about(row, candidates, 0, row.regions[0].caption)])["all"].total()
    assert total != total, "not a number: there is nothing to judge by"


def test_truth_from_a_file_goes_before_the_table(row):
    said = {**row.regions[0].attributes, "color": "made up"}
    candidates = region_candidates(load_image(row), row, {row.regions[0].region_id: said})
    assert candidates.truth[0] == said
    assert candidates.truth[1] == row.regions[1].attributes


def test_the_caption_of_a_twin_does_not_pick_its_region(row, candidates):
    own = candidates.attributes[0]
    twins = dataclasses.replace(candidates, attributes=(own, own, *candidates.attributes[2:]))
    assert not picks_own(about(row, twins, 0, row.regions[0].caption))


def test_a_caption_picks_the_region_it_describes_and_no_other(row, candidates):
    caption = row.regions[0].caption
    assert picks_own(about(row, candidates, 0, caption))
    assert not any(picks_own(about(row, candidates, index, caption)) for index in range(1, len(row.regions)))
