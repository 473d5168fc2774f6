"""Preference tuning on a real Ray with real DeepSpeed, of a model of some thousand weights."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ureca.corpus.schema import Distractor, ImageRow
from ureca.corpus.table import iter_images, write_regions
from ureca.errors import CheckpointError, InputError
from ureca.model.captioner import Captioner
from ureca.training.config import (
    BatchConfig,
    LoraConfig,
    OptimizerConfig,
    PreferenceConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    WorkersConfig,
)
from ureca.training.launch import fit
from ureca.training.monitor.metrics import read_metrics
from ureca.training.plan import Plan

NUM_STEPS = 16


@pytest.fixture(scope="module")
def table_with_distractors(region_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seven images, in which every region may be taken for those before it."""

    def with_distractors(row: ImageRow) -> ImageRow:
        regions = tuple(
            replace(region, distractors=tuple(Distractor(index=index, similarity=1.0) for index in range(place)))
            for place, region in enumerate(row.regions)
        )
        return replace(row, regions=regions)

    path = tmp_path_factory.mktemp("pairs") / "regions.parquet"
    write_regions(path, [with_distractors(row) for row in iter_images(region_table)])
    return path


@pytest.fixture(scope="module")
def stage2_model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with an adapter that does something."""
    folder = tmp_path_factory.mktemp("stage2") / "model"
    first = Plan.from_config(Stage1Config(table="t", base=str(tiny_base)), folder.parent).captioner()
    first.save_pretrained(folder.parent / "stage1")
    config = Stage2Config(table="t", base=str(tiny_base), init=str(folder.parent / "stage1"), lora=LoraConfig(rank=4))
    captioner = Plan.from_config(config, folder.parent).captioner()
    with torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in captioner.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.02)
    captioner.save_pretrained(folder)
    return folder


@pytest.fixture
def config(tiny_base: Path, table_with_distractors: Path, stage2_model: Path) -> Stage3Config:
    return Stage3Config(
        table=str(table_with_distractors),
        heldout=0.0,
        base=str(tiny_base),
        init=str(stage2_model),
        batch=BatchConfig(images_per_step=4, tokens_per_device=500, regions_per_image=3),
        preference=PreferenceConfig(beta=0.5, sft_weight=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-2, epochs=NUM_STEPS * 4 / 5),
        workers=WorkersConfig(num_workers=2, max_failures=0),
    )


def lines(config: Stage3Config, directory: Path) -> list[dict[str, Any]]:
    fit(config, directory)
    return read_metrics(directory / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_pairs_come_to_be_told_apart_and_other_cuts_and_zero_stages_take_the_same_way(
    config: Stage3Config, stage2_model: Path, tmp_path: Path
) -> None:
    two = lines(config, tmp_path / "two")
    assert len(two) == NUM_STEPS
    first, last = two[0], two[-1]
    assert first["margin"] == 0
    assert first["preference_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert last["preference_accuracy"] > 0.9
    assert last["margin"] > 1
    assert last["preference_loss"] < math.log(2) - 0.1
    assert first["num_pairs"] > 4

    # One worker, weights spread by ZeRO 3, and more images a pass: the same curve.
    workers = replace(config.workers, num_workers=1, zero_stage=3)
    one = lines(replace(config, workers=workers, batch=replace(config.batch, tokens_per_device=2000)), tmp_path / "one")
    for name in ("loss", "preference_loss", "sft_loss", "margin", "num_pairs", "num_tokens"):
        mine, other = (torch.tensor([float(line[name]) for line in of]) for of in (one, two))
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")

    # The adapter has moved, and alone.
    trained = tmp_path / "two" / "model"
    before, after = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (stage2_model, trained))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    before, after = (load_file(each / "mask_encoder.safetensors") for each in (stage2_model, trained))
    assert all(torch.equal(before[name], after[name]) for name in before)
    Captioner.from_pretrained(trained)


def test_a_table_without_distractors_is_refused_before_anything_starts(
    config: Stage3Config, region_table: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="distractor"):
        fit(replace(config, table=str(region_table)), tmp_path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("stage1", "stage1: .*LoRA.*stage 1"),
        ("export", "adapter"),
        ("nothing", r"captioner_config\.json"),
    ],
)
def test_what_stage_2_did_not_leave_is_refused(
    config: Stage3Config, stage2_model: Path, tmp_path: Path, made: str, message: str
) -> None:
    folder = tmp_path / made
    if made == "stage1":
        folder = stage2_model.parent / made
    elif made == "export":
        from ureca.model.exporting.export import export

        export(stage2_model, folder)
    with pytest.raises(CheckpointError, match=message):
        fit(replace(config, init=str(folder)), tmp_path)


def test_a_model_of_another_base_is_refused(config: Stage3Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="trained"):
        fit(replace(config, base=None), tmp_path)
