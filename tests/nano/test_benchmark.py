"""Nano's benchmark: selection of models, and the summary of their scores."""

import json
from pathlib import Path

import pytest
import torch
from support.labeled_scenes import KnownCaptioner, scene_row

from ureca.errors import CheckpointError, ConfigError
from ureca.evaluation.evaluate import evaluate
from ureca.evaluation.predictions import Variant
from ureca.model.captioner import Captioner, CaptionerConfig, load_base, weights_hash
from ureca.nano.benchmark import (
    Labeled,
    benchmark_summary,
    label_scenes,
    recipe_variants,
    seeds_record,
    shipped_variants,
)
from ureca.nano.scenes.draw import draw_scene

VARIANTS = ("none", "box", "tuned_none", "tuned_box", "mask_stage1", "mask_stage2")


@pytest.fixture(scope="module")
def labeled() -> Labeled:
    rows = [scene_row(seed) for seed in range(3)]
    first = rows[0].regions[0].region_id
    return Labeled(rows, {}, {"scene_0": {first: {"covered": "yes"}}})


@pytest.fixture(scope="module")
def evaluation(labeled, tmp_path_factory):
    """Captioners that say the labels (stage 2, seeds 0 and 4), or the same for every region."""
    true = {region.segmentation["counts"]: region.caption or "" for row in labeled.rows for region in row.regions}

    def variant(name, captioner, seed=0):
        return Variant(name=name, cue="mask", model=name, load=lambda: captioner, seed=seed)

    same = KnownCaptioner(dict.fromkeys(true, "the small red part"))
    variants = [variant(name, same) for name in VARIANTS[:-1]]
    variants += [variant("mask_stage2", KnownCaptioner(true)), variant("mask_stage2", same, seed=4)]
    return evaluate(variants, labeled.rows, output=tmp_path_factory.mktemp("evaluation"), strata=labeled.strata)


def test_summary_has_every_variant_s_three_scores_with_intervals(evaluation, labeled):
    recorded = seeds_record(evaluation, labeled)
    summary = json.loads(json.dumps(benchmark_summary(evaluation, labeled, name="nano-1", recorded=recorded)))
    assert tuple(summary["scores"]) == VARIANTS
    for scores in summary["scores"].values():
        assert list(scores) == ["rouge_l", "attribute_accuracy", "uniqueness"]
        for score in scores.values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert summary["scores"]["mask_stage2"]["rouge_l"]["value"] == pytest.approx(
        sum(seed["scores"]["mask_stage2"]["rouge_l"]["value"] for seed in summary["seeds"]) / 2, abs=1e-4
    )
    assert 0 < summary["describer"]["uniqueness"] <= 1
    assert set(summary["differences"]) == {f"mask_stage2 - {name}" for name in VARIANTS[:-1]}
    assert summary["strata"]["covered"]["yes"]["regions"] == 1
    assert summary["attributes_by_size"]


def test_seeds_stand_beside_each_other_and_share_their_base(evaluation, labeled):
    recorded = seeds_record(evaluation, labeled)
    assert [each["seed"] for each in recorded["seeds"]] == [0, 4]
    assert recorded["seeds"][0]["scores"]["mask_stage2"]["rouge_l"]["value"] == 1.0
    assert set(recorded["seeds"][1]["scores"]) == {"none", "box", "mask_stage2"}, "no control of that seed was trained"
    low, high = recorded["over_seeds"]["spread"]["mask_stage2"]["rouge_l"]
    assert 0 < low < high == 1.0


def test_seeds_scored_before_are_told_from_those_scored_now(evaluation, labeled, capsys):
    recorded = seeds_record(evaluation, labeled)
    recorded["seeds"].append({"seed": 7, "scores": {}})
    summary = benchmark_summary(evaluation, labeled, name="nano-1", recorded=recorded)
    assert {each["seed"]: each["scored"] for each in summary["seeds"]} == {0: "now", 4: "now", 7: "recorded"}
    assert summary["over_seeds"] == recorded["over_seeds"]
    assert "other labels" not in capsys.readouterr().err


def test_seeds_scored_against_other_labels_are_left_out(evaluation, labeled, capsys):
    recorded = {**seeds_record(evaluation, labeled), "labels_sha256": "others"}
    recorded["seeds"].append({"seed": 7, "scores": {}})
    summary = benchmark_summary(evaluation, labeled, name="nano-1", recorded=recorded)
    assert {each["seed"]: each["scored"] for each in summary["seeds"]} == {0: "now", 4: "now"}
    assert summary["over_seeds"] is None
    assert "scored against other labels" in capsys.readouterr().err


def test_the_package_holds_every_variant_of_one_base(capsys: pytest.CaptureFixture[str]) -> None:
    variants = shipped_variants()
    assert sorted(each.name for each in variants) == sorted(VARIANTS)
    assert not capsys.readouterr().err
    base = weights_hash(load_base("nano", torch.float32))
    trained = [CaptionerConfig.load(Path(each.model)) for each in variants if each.name not in ("none", "box")]
    assert [(config.base, config.base_hash) for config in trained] == [("nano", base)] * 4


def test_runs_are_taken_with_the_models_that_they_hold(tiny_base: Path, tmp_path: Path) -> None:
    captioner = Captioner.from_base(str(tiny_base), tile_limit=1)
    for model in ("seed0/stage1/model", "seed0/tuned_box/model", "seed12/stage1/model"):
        captioner.save_pretrained(tmp_path / model)
    variants = recipe_variants([str(tmp_path / "seed0"), str(tmp_path / "seed12")])
    assert [(each.name, each.cue, each.seed) for each in variants] == [
        ("none", "image", 0),
        ("box", "box_question", 0),
        ("tuned_box", "box", 0),
        ("mask_stage1", "mask", 0),
        ("mask_stage1", "mask", 12),
    ]


def test_folders_that_are_no_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runs=.*/model:.*nano_recipe"):
        recipe_variants([str(tmp_path / "model")])
    with pytest.raises(ConfigError, match="once"):
        recipe_variants([str(tmp_path / "a" / "seed1"), str(tmp_path / "b" / "seed1")])
    with pytest.raises(CheckpointError, match=r"captioner_config\.json"):
        recipe_variants([str(tmp_path / "seed1")])


@pytest.mark.slow
def test_scenes_are_labeled_by_the_labeling_job_and_keep_their_truth(ray_cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    scenes = [draw_scene(seed) for seed in (3, 4)]
    labeled = label_scenes(scenes, tmp_path, {})
    assert [row.image_id for row in labeled.rows] == ["scene_000003", "scene_000004"]
    for row, scene in zip(labeled.rows, scenes, strict=True):
        assert row.status == "labeled"
        true = {region.region_id: region.attributes for region in scene.regions}
        assert {region.region_id for region in row.regions} == set(true)
        assert labeled.truth[row.image_id] == true
    assert label_scenes(scenes, tmp_path, {}).labels_sha256 == labeled.labels_sha256
