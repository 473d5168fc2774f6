"""The model of the best checkpoint: the one that its weights make, and the best of those that are whole."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.trainings import storage_of

from ureca.model.captioner import Captioner
from ureca.training.checkpoint.best import make_best_model, make_model_of
from ureca.training.checkpoint.files import PARTS, CheckpointWriter, complete_checkpoints
from ureca.training.config import EvalConfig, LoraConfig, Stage1Config, Stage2Config
from ureca.training.plan import Plan


@pytest.fixture
def plan(tiny_base: Path, tmp_path: Path) -> Plan:
    """Run folder of a finished stage 2, with its model."""
    first = tmp_path / "stage1"
    Plan.from_config(Stage1Config(table="t", base=str(tiny_base)), first).captioner().save_pretrained(first / "model")
    config = Stage2Config(
        table="t", base=str(tiny_base), init=str(first / "model"), lora=LoraConfig(rank=2), tune_mask_encoder=True
    )
    plan = Plan.from_config(config, tmp_path / "run")
    plan.captioner().save_pretrained(tmp_path / "run" / "model")
    return plan


def drawn(plan: Plan, seed: int) -> Captioner:
    """Other weights in all that trains."""
    captioner = plan.captioner()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in captioner.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return captioner


def save(plan: Plan, captioner: Captioner, step: int, score: float | None, scored_by: str = "rouge_l") -> Path:
    writer = CheckpointWriter(storage_of(plan).checkpoints, step)
    weights = {name: value.detach() for name, value in captioner.named_parameters() if value.requires_grad}
    for part in PARTS:
        writer.add(part, weights)
    received = {"seed": 0, "base_hash": "0" * 64, "workers": {"num_workers": 2, "sharing": "ZeRO 1"}}
    writer.finish({"step": step, "score": score, "scored_by": scored_by, "plan": plan.identity(), **received})
    return Path(storage_of(plan).checkpoints) / writer.name


def files(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_the_model_of_the_best_checkpoint_s_weights(plan: Plan, tmp_path: Path) -> None:
    best = drawn(plan, seed=1)
    save(plan, best, 10, 0.75)
    save(plan, drawn(plan, seed=2), 20, 0.5)
    save(plan, drawn(plan, seed=3), 30, None)
    save(plan, drawn(plan, seed=4), 40, 0.9, scored_by="uniqueness")
    made = make_best_model(Path(plan.directory), storage_of(plan).checkpoints, plan.eval.score)
    assert made
    assert (made.directory.name, made.step, made.score) == ("model_best", 10, 0.75)
    best.save_pretrained(tmp_path / "expected")
    assert files(made.directory) == files(tmp_path / "expected")
    assert files(made.directory).keys() == files(tmp_path / "run" / "model").keys()
    assert files(made.directory) != files(tmp_path / "run" / "model")
    Captioner.from_pretrained(made.directory)


def test_weights_of_model_in_bfloat16_come_from_float32_checkpoint(plan: Plan) -> None:
    rounded = plan.captioner().bfloat16()
    rounded.save_pretrained(Path(plan.directory) / "model")
    trained = drawn(plan, seed=1)
    save(plan, trained, 10, 0.75)
    made = make_best_model(Path(plan.directory), storage_of(plan).checkpoints, plan.eval.score)
    assert made
    stored = load_file(made.directory / "mask_encoder.safetensors")
    for name, weight in trained.mask_encoder.named_parameters():
        assert torch.equal(stored[name], weight), name


def test_a_damaged_checkpoint_is_passed_over(plan: Plan) -> None:
    damaged = save(plan, drawn(plan, seed=1), 10, 0.75) / "weights.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    save(plan, drawn(plan, seed=2), 20, 0.5)
    made = make_best_model(Path(plan.directory), storage_of(plan).checkpoints, plan.eval.score)
    assert made
    assert made.step == 20


def test_every_whole_checkpoint_gives_its_model(plan: Plan, tmp_path: Path) -> None:
    saved = {10: drawn(plan, seed=1), 20: drawn(plan, seed=2), 30: drawn(plan, seed=3)}
    for step, captioner in saved.items():
        folder = save(plan, captioner, step, None)
        if step == 20:
            (folder / "weights.safetensors").write_bytes(b"cut")
    found = []
    for checkpoint in complete_checkpoints(storage_of(plan).checkpoints):
        found.append(checkpoint.step)
        make_model_of(checkpoint, tmp_path / "run" / "model", tmp_path / "made")
        saved[checkpoint.step].save_pretrained(tmp_path / "expected")
        assert files(tmp_path / "made") == files(tmp_path / "expected")
    assert found == [10, 30]


def test_without_a_score_there_is_none_and_an_earlier_one_is_gone(plan: Plan) -> None:
    save(plan, drawn(plan, seed=1), 10, 0.75)
    made = make_best_model(Path(plan.directory), storage_of(plan).checkpoints, plan.eval.score)
    assert made
    assert made.directory.is_dir()
    other = replace(plan, eval=EvalConfig(score="uniqueness"))
    assert make_best_model(Path(other.directory), storage_of(other).checkpoints, other.eval.score) is None
    assert not made.directory.exists()
