"""Whole trainings on a real Ray with real DeepSpeed, of a model so small that starting them takes longest.

Four runs are shared by all tests: stage 1 with two workers (`conftest.py`), with one, with two interrupted twice
(Ctrl-C, then a killed worker), and stage 2 on top of the first.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.trainings import (
    NUM_STEPS,
    ROOT,
    Trained,
    assert_same_curve,
    assert_same_training,
    job,
    stage1,
    steps_of,
    training_workers,
    wait_for_step,
)

from ureca.errors import CheckpointError, InputError
from ureca.model.captioner import Captioner
from ureca.training.config import LoraConfig, OptimizerConfig, Stage1Config, Stage2Config, WorkersConfig
from ureca.training.launch import fit
from ureca.training.plan import Plan

pytestmark = pytest.mark.slow

TOKENS_PER_STEP = 1200


@pytest.fixture(scope="module")
def one_worker(train: Callable[..., Trained], tiny_base: Path, region_table: Path) -> Trained:
    return train(stage1(tiny_base, region_table, num_workers=1, zero_stage=2))


@pytest.fixture(scope="module")
def stage2_run(train: Callable[..., Trained], two_workers: Trained, tiny_base: Path) -> Trained:
    config = Stage2Config(
        table=two_workers.config.table,
        heldout=0.0,
        base=str(tiny_base),
        init=two_workers.result.model,
        batch=replace(two_workers.config.batch, images_per_step=None, tokens_per_step=TOKENS_PER_STEP),
        optimizer=OptimizerConfig(learning_rate=3e-3, epochs=2),
        workers=WorkersConfig(num_workers=2, zero_stage=3, max_failures=0),
        lora=LoraConfig(rank=4, dropout=0.0),
    )
    return train(config)


def test_stage_1_learns(two_workers: Trained) -> None:
    result = two_workers.result
    assert (result.steps, result.images) == (NUM_STEPS, 7)
    assert result.loss_last < result.loss_first - 0.1  # as far as a base of random weights can be steered
    last = two_workers.lines[-1]
    assert last["num_steps"] == NUM_STEPS
    assert last["regions_per_second"] > 0
    assert last["grad_norm"] > 0


def test_two_workers_equal_one(
    two_workers: Trained, one_worker: Trained, fresh_mask_encoder: dict[str, torch.Tensor]
) -> None:
    assert_same_training(one_worker, two_workers, fresh_mask_encoder)


def test_bfloat16_on_a_cpu_takes_the_same_way(train: Callable[..., Trained], two_workers: Trained) -> None:
    config = two_workers.config
    short = replace(config.optimizer, epochs=6 * 4 / 7)
    rough = train(replace(config, optimizer=short, workers=replace(config.workers, num_workers=1, bf16=True)))
    # The first step's weights are the same, so its loss is that of the other but for rounding, which is there.
    first, exact = float(rough.losses[0]), float(two_workers.losses[0])
    assert first == pytest.approx(exact, rel=5e-3)
    assert first != exact
    assert all(weight.dtype == torch.float32 for weight in rough.mask_encoder.values())


def test_another_order_of_images_is_noticed(two_workers: Trained) -> None:
    with pytest.raises(AssertionError):
        assert_same_curve(two_workers.losses[1:], two_workers.losses[:-1])


def test_stage_1_changes_nothing_but_the_mask_encoder(
    two_workers: Trained, tiny_base: Path, fresh_mask_encoder: dict[str, torch.Tensor]
) -> None:
    model = Path(two_workers.result.model)
    assert not (model / "adapter").exists()
    # Loading checks the base's hash against the one recorded when training began.
    trained = Captioner.from_pretrained(model)
    assert trained.config.base == str(tiny_base)
    for name, value in trained.mask_encoder.state_dict().items():
        assert not torch.equal(value, fresh_mask_encoder[name]), f"{name} did not learn"


def test_stage_2_changes_nothing_but_lora(stage2_run: Trained, two_workers: Trained) -> None:
    for name, value in stage2_run.mask_encoder.items():
        assert torch.equal(value, two_workers.mask_encoder[name]), name
    adapter = load_file(Path(stage2_run.result.model) / "adapter" / "adapter_model.safetensors")
    assert adapter
    assert all("language_model" in name and "lora_" in name for name in adapter)
    # lora_B starts at zero: whatever is not zero has learned.
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)
    Captioner.from_pretrained(stage2_run.result.model)


def test_steps_of_a_token_budget_do_not_depend_on_the_workers(
    train: Callable[..., Trained], stage2_run: Trained
) -> None:
    config = stage2_run.config
    batch = replace(config.batch, tokens_per_device=10 * TOKENS_PER_STEP)
    alone = train(replace(config, batch=batch, workers=WorkersConfig(num_workers=1, max_failures=0)))
    assert_same_curve(alone.losses, stage2_run.losses)
    mine, others = ([(line["num_regions"], line["num_tokens"]) for line in run.lines] for run in (alone, stage2_run))
    assert mine == others
    assert len(set(mine)) > 1, "steps all alike would show nothing"


@pytest.fixture(scope="module")
def interrupted(two_workers: Trained, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run of `two_workers` as a job, ended with Ctrl-C, started again, and one of its workers killed."""
    directory = tmp_path_factory.mktemp("interrupted")
    config = two_workers.config
    assert isinstance(config, Stage1Config)
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    command = job(directory, config)
    options: dict[str, Any] = {
        "env": environment,
        "stderr": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        # Where the tests run in a shell's background SIGINT is ignored, and what they start inherits that.
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }

    plan = Plan.from_config(config, directory)
    with subprocess.Popen(command, text=True, **options) as process:
        wait_for_step(plan, 4, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again to resume" in errors
    done = steps_of(plan)
    assert 0 < done < NUM_STEPS, "it was over before it could be interrupted"

    with subprocess.Popen(command, text=True, **options) as process:
        wait_for_step(plan, done + 4, process)
        next(training_workers()).kill()
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert f"at step {done + 1} of {NUM_STEPS}" in errors
    assert "loss_last" in output
    return Trained(directory, config, fit(config, directory))


def test_interrupted_training_goes_on_as_if_it_had_not_been(
    interrupted: Trained, two_workers: Trained, fresh_mask_encoder: dict[str, torch.Tensor]
) -> None:
    assert_same_training(interrupted, two_workers, fresh_mask_encoder)


def test_export_of_a_trained_captioner_is_a_plain_internvl(stage2_run: Trained, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "export.py"), "--model", stage2_run.result.model]
    subprocess.run([*command, "--output", str(tmp_path / "export")], check=True, capture_output=True)
    assert {"config.json", "model.safetensors", "mask_encoder.safetensors"} <= {
        path.name for path in (tmp_path / "export").iterdir()
    }
    assert not any("lora" in name for name in load_file(tmp_path / "export" / "model.safetensors"))


def test_finished_training_is_not_repeated(two_workers: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(two_workers.config, two_workers.directory) == two_workers.result
    assert f"all {NUM_STEPS} steps are done" in capsys.readouterr().err


def test_only_the_newest_checkpoints_stay_and_they_leave_out_the_base(one_worker: Trained) -> None:
    checkpoints = sorted((one_worker.directory / "checkpoints").glob("checkpoint_0*"))
    assert [json.loads((c / "record.json").read_text())["step"] for c in checkpoints] == [32, 34]
    weights = load_file(checkpoints[-1] / "weights.safetensors")
    assert {name.removeprefix("mask_encoder.") for name in weights} == one_worker.mask_encoder.keys()
    assert all(
        torch.equal(one_worker.mask_encoder[name.removeprefix("mask_encoder.")], weights[name]) for name in weights
    )


def test_other_settings_are_refused_and_both_named(two_workers: Trained) -> None:
    other = replace(two_workers.config, seed=7, workers=WorkersConfig(num_workers=1))
    with pytest.raises(CheckpointError, match="seed=0.*7"):
        fit(other, two_workers.directory)


def test_missing_table_is_told_before_anything_starts(two_workers: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no parquet file"):
        fit(replace(two_workers.config, table=str(tmp_path)), tmp_path)
