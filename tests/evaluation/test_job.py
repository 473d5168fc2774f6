"""jobs/evaluate.py as a person runs it, on a captioner so small that loading it takes longest."""

import json
import subprocess
import sys

import pytest
from support.labeled_scenes import scene_row
from support.paths import ROOT

from ureca.config import load_config
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import write_regions
from ureca.errors import CheckpointError, ConfigError, InputError
from ureca.evaluation.config import EvaluateConfig
from ureca.evaluation.variants import variants_of
from ureca.model.captioner import Captioner

CONFIGS = ROOT / "jobs" / "configs"


@pytest.fixture(scope="module")
def models(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    captioner = Captioner.from_base(str(tiny_base), tile_limit=1)
    captioner.save_pretrained(folder / "stage1")
    captioner.add_lora(rank=2)
    captioner.save_pretrained(folder / "stage2")
    captioner.save_pretrained(folder / "tuned_none")
    captioner.save_pretrained(folder / "tuned_box")
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "regions.parquet"
    rows = [scene_row(seed) for seed in range(5)]
    gone = ImageRow.quarantined("gone", "gone.jpg", "read", InputError("gone.jpg: missing"))
    write_regions(path, [*rows, gone])
    return path


def run_job(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "evaluate.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def done(models, table, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    arguments = [f"--{name}={models / name}" for name in ("stage1", "stage2", "tuned_none", "tuned_box")]
    arguments += [f"--table={table}", "--heldout=1", "--max_new_tokens=4", f"--run_directory={output}"]
    return run_job(*arguments), output


@pytest.mark.slow
def test_summary_holds_every_variant_and_score(done):
    process, output = done
    assert process.returncode == 0, process.stderr
    summary = json.loads((output / "summary.json").read_text())
    wanted = {"rouge_l", "meteor", "cider", "attribute_accuracy", "uniqueness"}
    assert set(summary["scores"]) == {"none", "box", "tuned_none", "tuned_box", "mask_stage1", "mask_stage2"}
    for scores in summary["scores"].values():
        assert wanted <= set(scores)
        assert all(0 <= value <= 1 for value in scores.values())
    assert summary["images"] == 5
    assert summary["left_out"] == 1


@pytest.mark.slow
def test_job_prints_intervals_progress_and_which_meteor(done):
    process, _ = done
    assert "METEOR 1.5 (Java)" in process.stdout
    assert "mask_stage2 - tuned_none" in process.stdout
    assert "caption  30/30 images" in process.stderr
    assert "skipped gone: gone.jpg: missing" in process.stderr


@pytest.mark.slow
def test_predictions_name_image_region_variant_and_both_texts(done):
    _, output = done
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * sum(len(scene_row(seed).regions) for seed in range(5))
    assert {"image_id", "region_id", "variant", "caption", "reference", "seed"} == set(lines[0])
    same = {each["caption"] for each in lines if (each["variant"], each["image_id"]) == ("none", "scene_0")}
    assert len(same) == 1, "the base has no region cue"


def test_a_missing_table_ends_with_exit_code_2_and_one_line(tmp_path):
    process = run_job(f"--table={tmp_path / 'none'}", f"--run_directory={tmp_path / 'run'}")
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert str(tmp_path / "none") in process.stderr


def test_shipped_configuration_loads():
    config = load_config(EvaluateConfig, ["--config", str(CONFIGS / "evaluate_nano.yaml")])
    assert config.stage2 == "runs/train_stage2/model"


def test_variants_follow_from_the_models_given(models):
    config = EvaluateConfig(table="t", stage2=str(models / "stage2"))
    assert [(each.name, each.cue) for each in variants_of(config)] == [
        ("none", "image"),
        ("box", "box_question"),
        ("mask_stage2", "mask"),
    ]
    assert isinstance(variants_of(config)[0].load(), Captioner)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no captioner"):
        variants_of(EvaluateConfig(table="t", stage1=str(tmp_path)))


@pytest.mark.parametrize("wrong", ["--heldout=0", "--heldout=1.5", "--max_new_tokens=0"])
def test_values_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=wrong.strip("-").split("=")[0]):
        load_config(EvaluateConfig, ["--table=t", wrong])


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="'giant'"):
        variants_of(EvaluateConfig(table="t", preset="giant"))
