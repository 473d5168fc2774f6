"""Trainings that go on after something was lost: other workers, damaged checkpoints, a full disk, a machine, S3."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import SUPPORT, TESTS
from support.trainings import NUM_STEPS, Trained, assert_same_curve, assert_same_training, steps_of

from ureca.errors import ConfigError
from ureca.storage.files import copy_folder, list_folders, read_bytes
from ureca.training.checkpoint.files import PARTS, CheckpointWriter
from ureca.training.config import CheckpointConfig, Stage1Config, WorkersConfig
from ureca.training.deepspeed import TrainingError
from ureca.training.launch import fit, ray_checkpoint_config
from ureca.training.monitor.metrics import read_metrics
from ureca.training.plan import Plan

pytestmark = pytest.mark.slow


def take_over(run: Trained, steps: tuple[int, ...], directory: Path) -> list[Path]:
    """Make `directory` the run as it was after the last of `steps`, with its checkpoints of those steps."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(run.directory / "metrics.jsonl", directory)
    copies = []
    for step in steps:
        (source,) = (run.directory / "checkpoints").glob(f"checkpoint_{step:08d}_*")
        copies.append(directory / "checkpoints" / source.name)
        shutil.copytree(source, copies[-1])
    return copies


def test_other_workers_go_on_and_past_a_damaged_checkpoint(
    two_workers: Trained,
    fresh_mask_encoder: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two workers, ZeRO 1, to step 20; one, ZeRO 3, to 28; two, ZeRO 2, to the end."""
    config = replace(two_workers.config, checkpoints=replace(two_workers.config.checkpoints, num_to_keep=3))
    *_, damaged = take_over(two_workers, (20, 24), tmp_path / "one")
    data = bytearray((damaged / "exp_avg.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "exp_avg.safetensors").write_bytes(data)

    one = replace(config, workers=WorkersConfig(num_workers=1, zero_stage=3, max_failures=0))
    gone_on = Trained(tmp_path / "one", one, fit(one, tmp_path / "one"))
    received = capsys.readouterr().err
    assert re.search(rf"{damaged.name}: exp_avg\.safetensors .*step 20", received)
    assert re.search(r"step 20: .*2 workers \(ZeRO 1\).* 1 \(ZeRO 3\)", received)
    assert_same_training(gone_on, two_workers, fresh_mask_encoder)
    # What Ray Train did not write in this run is gone after it, the damaged one too.
    assert [int(name[11:19]) for name in list_folders(tmp_path / "one" / "checkpoints")] == [28, 32, 34]

    take_over(gone_on, (28,), tmp_path / "two")
    two = replace(config, workers=WorkersConfig(num_workers=2, zero_stage=2, max_failures=0))
    back = Trained(tmp_path / "two", two, fit(two, tmp_path / "two"))
    assert re.search(r"1 worker \(ZeRO 3\).* 2 \(ZeRO 2\)", capsys.readouterr().err)
    assert_same_training(back, two_workers, fresh_mask_encoder)


@pytest.fixture
def small_disk(two_workers: Trained, tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 1.5 checkpoints."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    (checkpoint,) = (two_workers.directory / "checkpoints").glob("checkpoint_00000028_*")
    size = sum(file.stat().st_size for file in checkpoint.iterdir()) * 3 // 2
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_a_full_disk_ends_the_training_and_with_space_it_goes_on(
    two_workers: Trained, fresh_mask_encoder: dict[str, torch.Tensor], small_disk: Path, tmp_path: Path
) -> None:
    take_over(two_workers, (28,), tmp_path / "run")
    shutil.move(tmp_path / "run" / "checkpoints", small_disk)
    config = replace(two_workers.config, checkpoints=CheckpointConfig(every_steps=4, storage=str(small_disk)))
    plan = Plan.from_config(config, tmp_path / "run")
    assert steps_of(plan) == 28
    with pytest.raises(TrainingError) as ended:
        fit(config, tmp_path / "run")
    assert str(ended.value).startswith("step 32: the checkpoint can't be saved. ")
    assert "the disk is full" in str(ended.value)
    assert str(ended.value).endswith("resumes from the previous checkpoint.")
    assert steps_of(plan) == 28
    assert len(list_folders(small_disk / "checkpoints")) == 1

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert_same_training(
        Trained(tmp_path / "run", config, fit(config, tmp_path / "run")), two_workers, fresh_mask_encoder
    )


def test_workers_that_the_cluster_cannot_hold_are_refused(two_workers: Trained, tmp_path: Path) -> None:
    config = two_workers.config
    too_many = replace(config, batch=replace(config.batch, images_per_step=64), workers=WorkersConfig(num_workers=64))
    with pytest.raises(ConfigError, match="workers.num_workers=64:.*1.*4.*CPUs"):
        fit(too_many, tmp_path)
    gpu = WorkersConfig(use_gpu=True, bf16=True, offload_optimizer=True)
    with pytest.raises(ConfigError, match="use_gpu=true, bf16=true, offload_optimizer=true:.*GPU"):
        fit(replace(config, workers=gpu), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (CheckpointConfig(keep_best=2), [2, 4, 6]),  # the best two, and the last
        (CheckpointConfig(num_to_keep=2), [5, 6]),
    ],
    ids=["best", "newest"],
)
def test_which_checkpoints_stay(ray_cluster: str, tmp_path: Path, config: CheckpointConfig, kept: list[int]) -> None:  # noqa: ARG001
    import ray.train
    from ray.train.torch import TorchTrainer

    def save_with_scores(settings: dict[str, Any]) -> None:
        """Run a worker's checkpointing without the training in between."""
        from ureca.training.checkpoint.optimizer_state import report_saved

        for step, score in enumerate(settings["scores"], start=1):
            writer = CheckpointWriter(settings["folder"], step)
            for part in PARTS:
                writer.add(part, {"weight": torch.full((2,), float(step))})
            writer.finish({"step": step})
            report_saved(writer, step=step, score=score)

    TorchTrainer(
        save_with_scores,
        train_loop_config={"folder": f"{tmp_path}/checkpoints", "scores": [0.1, 0.5, None, 0.3, 0.2, None]},
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name="checkpoints", storage_path=str(tmp_path), checkpoint_config=ray_checkpoint_config(config)
        ),
    ).fit()
    assert [int(name[11:19]) for name in list_folders(tmp_path / "checkpoints")] == kept


def test_a_lost_machine_is_replaced_and_checkpoints_in_s3_outlive_it(
    two_workers: Trained, s3_bucket: str, tmp_path: Path
) -> None:
    """Each worker on a separate machine; one machine is lost after some steps, and another joins."""
    assert isinstance(two_workers.config, Stage1Config)
    storage = f"{s3_bucket}/lost_machine"
    arguments = {
        "table": two_workers.config.table,
        "base": two_workers.config.base,
        "directory": str(tmp_path / "run"),
        "storage": storage,
    }
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    paths = [str(TESTS), *sys.path]
    ended = subprocess.run(
        [sys.executable, str(SUPPORT / "lost_machine.py"), json.dumps(arguments)],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "lost the machine of a worker after step" in ended.stdout
    assert "resuming after step" in ended.stderr
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    assert_same_curve(torch.tensor([line["loss"] for line in lines], dtype=torch.float64), two_workers.losses)
    # All of the run that is needed elsewhere is in S3, and nothing of it but the run's own files is here.
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert len(list_folders(f"{storage}/checkpoints")) == 2
    assert read_bytes(f"{storage}/metrics.jsonl") == (tmp_path / "run" / "metrics.jsonl").read_bytes()
    copy_folder(f"{storage}/model", tmp_path / "fetched")
    mine = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert mine == {path.name: path.read_bytes() for path in (tmp_path / "fetched").iterdir()}
