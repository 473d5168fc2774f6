"""Whole trainings of a model so small that starting them takes longest: their configurations, and what is compared."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from support.paths import ROOT
from ureca.training.checkpoint.files import completed_steps
from ureca.training.checkpoint.s3_sync import RunStorage
from ureca.training.config import (
    BatchConfig,
    CheckpointConfig,
    OptimizerConfig,
    Stage1Config,
    Stage2Config,
    WorkersConfig,
)
from ureca.training.launch import TrainingResult
from ureca.training.monitor.inloop_eval import select_eval_images
from ureca.training.monitor.metrics import last_line, read_metrics
from ureca.training.plan import Plan

NUM_STEPS = 34
# Of the loss, and of each weight on the scale of how far it moved. Sums in another order, 34 times over.
CURVE_TOLERANCE = 2e-5
WEIGHT_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Trained:
    directory: Path
    config: Stage1Config | Stage2Config
    result: TrainingResult

    @property
    def lines(self) -> list[dict[str, Any]]:
        return read_metrics(self.directory / "metrics.jsonl")

    @property
    def losses(self) -> torch.Tensor:
        return torch.tensor([line["loss"] for line in self.lines], dtype=torch.float64)

    @property
    def mask_encoder(self) -> dict[str, torch.Tensor]:
        return load_file(self.directory / "model" / "mask_encoder.safetensors")


def stage1(base: Path, table: Path, *, num_workers: int, zero_stage: int = 1, num_to_keep: int = 2) -> Stage1Config:
    return Stage1Config(
        table=str(table),
        heldout=0.0,
        base=str(base),
        batch=BatchConfig(images_per_step=4, tokens_per_device=1000 if num_workers == 1 else 400, regions_per_image=3),
        optimizer=OptimizerConfig(learning_rate=3e-3, epochs=NUM_STEPS * 4 / 7),
        workers=WorkersConfig(num_workers=num_workers, zero_stage=zero_stage, max_failures=1),  # type: ignore[arg-type]
        checkpoints=CheckpointConfig(every_steps=4, num_to_keep=num_to_keep),
    )


def storage_of(plan: Plan) -> RunStorage:
    """Return the storage of a plan's run, as driver and workers make it."""
    return RunStorage(plan.directory, plan.checkpoints.storage)


def steps_of(plan: Plan) -> int:
    """Return the steps of the newest complete checkpoint of a plan's run."""
    return completed_steps(storage_of(plan).checkpoints, plan.identity())


def select_images(plan: Plan) -> int:
    """Select the evaluation images of a plan's run, as the driver does."""
    return select_eval_images(
        plan.table, plan.directory, plan.eval, heldout=plan.heldout, heldout_seed=plan.heldout_seed
    )


def assert_same_curve(mine: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=CURVE_TOLERANCE, atol=0)


def assert_same_training(mine: Trained, other: Trained, start: dict[str, torch.Tensor]) -> None:
    """Same losses step by step, and weights that differ by little of the way they came."""
    assert [line["step"] for line in mine.lines] == list(range(1, NUM_STEPS + 1))
    assert_same_curve(mine.losses, other.losses)
    for name, weight in other.mask_encoder.items():
        moved = (weight - start[name]).norm()
        assert (mine.mask_encoder[name] - weight).norm() <= WEIGHT_TOLERANCE * moved, name


def job(run_directory: Path, config: Stage1Config) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "jobs" / "train_stage1.py")),
        *(f"--table={config.table}", f"--base={config.base}", f"--run_directory={run_directory}"),
        f"--heldout={config.heldout}",
        *(f"--batch.{name}={value}" for name, value in vars(config.batch).items() if value is not None),
        f"--optimizer.learning_rate={config.optimizer.learning_rate}",
        f"--optimizer.epochs={config.optimizer.epochs}",
        f"--workers.num_workers={config.workers.num_workers}",
        f"--workers.max_failures={config.workers.max_failures}",
        f"--checkpoints.every_steps={config.checkpoints.every_steps}",
    ]


def wait_for_step(plan: Plan, step: int, process: "subprocess.Popen[str]") -> None:
    """Until a checkpoint of at least that many steps can be gone on from, and a step after it is done."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        done = steps_of(plan)
        line = last_line(Path(plan.directory) / "metrics.jsonl")
        if done >= step and line is not None and line["step"] > done:
            return
        time.sleep(0.2)
    raise AssertionError(f"never came to step {step}: {process.communicate()[1]}")


def training_workers() -> Iterator[psutil.Process]:
    """Yield the workers of trainings on this process's Ray."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("RayTrainWorker" in word for word in process.cmdline()):
                yield process
