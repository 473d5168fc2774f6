import dataclasses
import json

import pytest
from support.labeled_scenes import KnownCaptioner, scene_row

from ureca.corpus.schema import ImageRow
from ureca.errors import InputError, UrecaError
from ureca.evaluation.aggregate import METRICS
from ureca.evaluation.evaluate import evaluate
from ureca.evaluation.metrics import MetricError
from ureca.evaluation.predictions import Variant


def variant(name, captioner, cue="mask"):
    return Variant(name=name, cue=cue, model=name, load=lambda: captioner)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def evaluation(scenes, true_answers, colorless, output):
    """The labels' own words, the same in wrong colors, and one answer for all; drawn scenes and a photo."""
    wrong = {mask: colorless(caption) for mask, caption in true_answers.items()}
    photo = scene_row(7, known=False)
    true_answers = true_answers | {r.segmentation["counts"]: r.caption for r in photo.regions}
    quarantined = ImageRow.quarantined("gone", "gone.jpg", "read", InputError("gone.jpg: missing"))
    return evaluate(
        [
            variant("none", KnownCaptioner({}, otherwise="colored shapes on a ground"), cue="image"),
            variant("tuned_none", KnownCaptioner(wrong)),
            variant("mask_stage2", KnownCaptioner(true_answers)),
        ],
        [*scenes, photo, quarantined],
        output=output,
    )


def test_better_captions_score_higher_in_every_metric(evaluation):
    for metric in METRICS:
        none, wrong, right = (
            evaluation.scores[name][metric]["value"] for name in ("none", "tuned_none", "mask_stage2")
        )
        assert none <= wrong < right, metric
        assert none >= 0, metric
        assert right <= 1, metric


def test_the_labels_own_words_reach_the_ceiling(evaluation):
    scores, ceiling = evaluation.scores["mask_stage2"], evaluation.main.ceiling
    assert scores["rouge_l"]["value"] == scores["attribute_accuracy"]["value"] == 1.0
    assert {name: scores[name] for name in ceiling} == ceiling
    assert 0 < ceiling["uniqueness"]["value"] < 1, "plain sentences tell some parts apart and others not"


def test_intervals_hold_their_values_and_are_not_points(evaluation):
    scores = evaluation.scores["tuned_none"]
    for metric in METRICS:
        assert scores[metric]["low"] <= scores[metric]["value"] <= scores[metric]["high"], metric
    assert scores["rouge_l"]["low"] < scores["rouge_l"]["high"]


def test_attribute_accuracy_falls_by_the_wrong_attribute_alone(evaluation):
    attributes = evaluation.main.attributes
    assert attributes["mask_stage2"]["color"] == attributes["labels"]["color"] == 1.0
    assert attributes["tuned_none"]["color"] == 0.0
    assert attributes["tuned_none"]["texture"] == attributes["tuned_none"]["shape"] == 1.0
    assert attributes["none"]["color"] == 0.0


def test_differences_are_paired_and_signed(evaluation):
    found = {(each["better"], each["worse"], each["metric"]): each for each in evaluation.main.differences}
    against_control = found["mask_stage2", "tuned_none", "rouge_l"]
    scores = evaluation.scores
    expected = scores["mask_stage2"]["rouge_l"]["value"] - scores["tuned_none"]["rouge_l"]["value"]
    assert against_control["value"] == pytest.approx(expected)
    assert 0 < against_control["low"] <= against_control["value"] <= against_control["high"]


def test_photos_are_scored_apart_and_without_attribute_accuracy(evaluation):
    assert set(evaluation.groups) == {"drawn", "photo"}
    assert evaluation.main is evaluation.groups["drawn"]
    photo = evaluation.groups["photo"].scores["mask_stage2"]
    assert "attribute_accuracy" not in photo
    assert photo["rouge_l"]["value"] == 1.0
    assert evaluation.groups["drawn"].num_images == 6
    assert evaluation.groups["photo"].num_images == 1


def test_an_image_that_is_left_out_is_named_with_its_reason(evaluation):
    assert evaluation.left_out == {"gone": "gone.jpg: missing"}
    assert evaluation.summary()["left_out"] == 1


def test_summary_is_flat_and_names_its_meteor(evaluation):
    summary = json.loads(json.dumps(evaluation.summary()))
    assert set(summary["scores"]) == {"none", "tuned_none", "mask_stage2"}
    for scores in summary["scores"].values():
        assert set(scores) == set(METRICS)
        assert all(0 <= value <= 1 for value in scores.values())
    assert summary["metrics"] == {"meteor": "METEOR 1.5 (Java)", "cider": "CIDEr / 10"}
    value, low, high = summary["differences"]["mask_stage2 - tuned_none"]["rouge_l"]
    assert 0 < low <= value <= high


def test_table_shows_intervals_and_which_meteor(evaluation):
    table = evaluation.table()
    assert "METEOR 1.5 (Java)" in table
    assert "CIDEr / 10" in table
    assert "1.000 [1.000, 1.000]" in table
    assert table.index("drawn scenes") < table.index("real photos")


def test_captions_come_back_as_the_report_takes_them(evaluation, scenes):
    row = scenes[0]
    captions, own = evaluation.captions_of(row.image_id), evaluation.picks_own_of(row.image_id)
    assert captions["mask_stage2"] == {region.region_id: region.caption for region in row.regions}
    assert set(own["mask_stage2"]) == {region.region_id for region in row.regions}
    assert not any(own["none"].values())


def test_scores_file_holds_all_groups(evaluation, output):
    stored = json.loads((output / "scores.json").read_text())
    assert {kind: group["scores"] for kind, group in stored["groups"].items()} == {
        kind: group.scores for kind, group in evaluation.groups.items()
    }
    assert stored["metrics"]["meteor"] == "METEOR 1.5 (Java)"
    assert len((output / "predictions.jsonl").read_text().splitlines()) == len(evaluation.predictions)


def test_nothing_to_evaluate_says_why(scenes, tmp_path):
    row = dataclasses.replace(scenes[0], image_bytes=scenes[0].image_bytes[:200])
    with pytest.raises(InputError, match="1.*scene_0"):
        evaluate([], [row], output=tmp_path)


def test_missing_java_is_said_before_the_captions(scenes, true_answers, tmp_path, monkeypatch):
    def no_java():
        raise MetricError("no Java")

    captioner = KnownCaptioner(true_answers)
    monkeypatch.setattr("ureca.evaluation.evaluate.find_java", no_java)
    with pytest.raises(UrecaError, match="no Java"):
        evaluate([variant("mask_stage2", captioner)], scenes[:1], output=tmp_path)
    assert captioner.asked == []
