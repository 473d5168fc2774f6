import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trainings import storage_of

from ureca.errors import CheckpointError, StorageError
from ureca.storage.files import list_folders
from ureca.training.checkpoint.files import (
    PARTS,
    Checkpoint,
    CheckpointWriter,
    completed_steps,
    delete_all_checkpoints,
    newest_checkpoint,
    repair_checkpoint_index,
)
from ureca.training.checkpoint.optimizer_state import resume_message
from ureca.training.config import BatchConfig, CheckpointConfig, LoraConfig, Stage1Config, Stage2Config, WorkersConfig
from ureca.training.plan import Plan

TENSORS = {"mask_encoder.a": torch.arange(6.0).reshape(2, 3), "mask_encoder.b": torch.ones(1)}


def save(plan: Plan, step: int) -> str:
    """A checkpoint as the loop writes one; returns its folder's name."""
    writer = CheckpointWriter(storage_of(plan).checkpoints, step)
    for part in PARTS:
        writer.add(part, {name: tensor + step for name, tensor in TENSORS.items()})
    workers = {"num_workers": 2, "sharing": "ZeRO 1"}
    writer.finish({"step": step, "seed": 0, "base_hash": "0" * 64, "workers": workers, "plan": plan.identity()})
    return writer.name


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan.from_config(Stage1Config(table="t"), tmp_path)


def folder(plan: Plan, name: str) -> Path:
    return Path(storage_of(plan).checkpoints) / name


def test_the_newest_comes_back_as_it_was_written(plan: Plan) -> None:
    assert newest_checkpoint(storage_of(plan).checkpoints, plan.identity(), with_content=True) == (None, [])
    for step in (8, 16, 100):
        name = save(plan, step)
    found, damaged = newest_checkpoint(storage_of(plan).checkpoints, plan.identity(), with_content=True)
    assert found
    assert (found.name, found.step, damaged, completed_steps(storage_of(plan).checkpoints, plan.identity())) == (
        name,
        100,
        [],
        100,
    )
    for part in PARTS:
        assert found.parts[part].keys() == TENSORS.keys()
        assert all(torch.equal(found.parts[part][key], TENSORS[key] + 100) for key in TENSORS)


def truncate(path: Path) -> None:
    os.truncate(path / "exp_avg.safetensors", 100)


def flip(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def cut_record(path: Path) -> None:
    os.truncate(path / "record.json", 40)


def lose_record(path: Path) -> None:
    (path / "record.json").unlink()


def lose_part(path: Path) -> None:
    (path / "exp_avg_sq.safetensors").unlink()


DAMAGES = [
    (truncate, "exp_avg.safetensors has 100 of 212 bytes"),
    (flip, "weights.safetensors has a different SHA-256 than recorded"),
    (cut_record, "record.json can't be read"),
    (lose_record, "no record.json"),
    (lose_part, "no exp_avg_sq.safetensors"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_one_is_named_and_the_one_before_taken(plan: Plan, damage, message) -> None:
    save(plan, 8)
    name = save(plan, 16)
    damage(folder(plan, name))
    found, damaged = newest_checkpoint(storage_of(plan).checkpoints, plan.identity(), with_content=True)
    assert found
    assert found.step == 8
    assert damaged == [f"{name}: {message}"]


def test_when_none_is_whole_nothing_begins_again_by_itself(plan: Plan) -> None:
    flip(folder(plan, save(plan, 8)))
    with pytest.raises(CheckpointError, match="SHA-256"):
        newest_checkpoint(storage_of(plan).checkpoints, plan.identity(), with_content=True)


def test_saves_that_were_cut_off_are_no_checkpoints(plan: Plan) -> None:
    name = save(plan, 8)
    lose_record(folder(plan, name))
    assert newest_checkpoint(storage_of(plan).checkpoints, plan.identity(), with_content=True) == (
        None,
        [f"{name}: no record.json"],
    )
    delete_all_checkpoints(storage_of(plan).checkpoints)
    assert not list_folders(storage_of(plan).checkpoints)


def test_other_folders_beside_them_are_left_alone(plan: Plan) -> None:
    save(plan, 8)
    (folder(plan, "checkpoint_of_mine")).mkdir()
    delete_all_checkpoints(storage_of(plan).checkpoints)
    assert list_folders(storage_of(plan).checkpoints) == ["checkpoint_of_mine"]


def test_another_plan_is_refused(plan: Plan) -> None:
    save(plan, 8)
    with pytest.raises(CheckpointError, match="seed=0.*7"):
        completed_steps(storage_of(plan).checkpoints, replace(plan, seed=7).identity())


def test_a_list_of_ray_train_that_a_full_disk_emptied_is_removed(plan: Plan) -> None:
    assert not repair_checkpoint_index(storage_of(plan).checkpoints)
    save(plan, 8)
    snapshot = folder(plan, "checkpoint_manager_snapshot.json")
    for text in ("", '{"ray_version": "9', json.dumps({"ray_version": "0.1"})):
        snapshot.write_text(text)
        assert repair_checkpoint_index(storage_of(plan).checkpoints)
        assert not snapshot.exists()
    assert completed_steps(storage_of(plan).checkpoints, plan.identity()) == 8


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "after step 8 with the weights and optimizer of {name}$"),
        ({"num_workers": 1}, r"2 workers \(ZeRO 1\) .* 1 \(ZeRO 1\), nothing lost; .*dropout.* num_workers\)$"),
        ({"zero_stage": 3}, r"2 workers \(ZeRO 1\) .* 2 \(ZeRO 3\), nothing lost$"),
        ({"tokens_per_device": 512}, r"2 \(ZeRO 1\), nothing lost; .*dropout.* tokens_per_device\)$"),
        ({"tokens_per_device": 512, "use_gpu": True}, r"nothing lost; .*dropout.* tokens_per_device, use_gpu\)$"),
    ],
    ids=str,
)
def test_what_draws_otherwise_is_told(tmp_path: Path, changed: dict[str, Any], expected: str) -> None:
    def config(tokens_per_device: int = 8192, **workers: Any) -> Stage2Config:
        return Stage2Config(
            table="t",
            cue="none",
            batch=BatchConfig(tokens_per_device=tokens_per_device),
            workers=WorkersConfig(**workers),
        )

    recorded = Plan.from_config(config(), tmp_path).checkpoint_record("0" * 64)["workers"]
    plan = Plan.from_config(config(**changed), tmp_path)
    message = resume_message(
        Checkpoint("run/checkpoint_8", {"step": 8, "workers": recorded}), plan.checkpoint_record("0" * 64)
    )
    assert re.search(expected.format(name="checkpoint_8"), message)
    older = {name: recorded[name] for name in ("num_workers", "sharing")}  # as before passes were recorded
    assert "step 8" in resume_message(
        Checkpoint("run/checkpoint_8", {"step": 8, "workers": older}), plan.checkpoint_record("0" * 64)
    )
    without = replace(plan, lora=replace(plan.lora or LoraConfig(), dropout=0.0))
    assert "dropout" not in resume_message(
        Checkpoint("run/checkpoint_8", {"step": 8, "workers": recorded}), without.checkpoint_record("0" * 64)
    )


def test_checkpoints_in_s3(s3_bucket: str, tmp_path: Path) -> None:
    storage = CheckpointConfig(storage=f"{s3_bucket}/some/run/")
    plan = Plan.from_config(Stage1Config(table="t", checkpoints=storage), tmp_path)
    assert storage_of(plan).checkpoints == f"{s3_bucket}/some/run/checkpoints"
    assert newest_checkpoint(storage_of(plan).checkpoints, plan.identity(), with_content=True) == (None, [])
    save(plan, 8)
    save(plan, 16)
    found, _ = newest_checkpoint(storage_of(plan).checkpoints, plan.identity(), with_content=True)
    assert found
    assert found.step == 16
    assert torch.equal(found.parts["weights"]["mask_encoder.b"], torch.ones(1) + 16)
    delete_all_checkpoints(storage_of(plan).checkpoints)
    assert completed_steps(storage_of(plan).checkpoints, plan.identity()) == 0
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(small_disk: Path) -> None:
    plan = Plan.from_config(Stage1Config(table="t"), small_disk)
    save(plan, 8)
    writer = CheckpointWriter(storage_of(plan).checkpoints, 16)
    writer.add("weights", TENSORS)
    with pytest.raises(StorageError, match="unchanged"):
        writer.add("exp_avg", {"large": torch.zeros(20_000)})
    assert len(list_folders(storage_of(plan).checkpoints)) == 1  # what the failed one took is free again
    found, damaged = newest_checkpoint(storage_of(plan).checkpoints, plan.identity(), with_content=True)
    assert found
    assert (found.step, damaged) == (8, [])
