"""Whatever shares out what trains, loss, gradients and the way of the weights are the same; and any goes on from any.

Real DeepSpeed processes under gloo, without Ray: two of them and one, each trains a tiny captioner under every way.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.paths import SUPPORT, TESTS

pytestmark = pytest.mark.slow

WORKER = SUPPORT / "zero_worker.py"
STOP, END = 2, 2  # steps before and after the interruption

PLAIN: dict[str, dict[str, Any]] = {f"zero{stage}": {"zero_stage": stage} for stage in (1, 2, 3)}
OFFLOADED = {
    "zero1_offload": {"zero_stage": 1, "offload_optimizer": True},
    "zero3_offload": {"zero_stage": 3, "offload_optimizer": True, "offload_weights": True},
}
HALF = {
    "zero1_bf16": {"zero_stage": 1, "bf16": True},
    "zero3_offload_bf16": {**OFFLOADED["zero3_offload"], "bf16": True},
}
WAYS = PLAIN | {name: {**way, "use_gpu": True} for name, way in (OFFLOADED | HALF).items()}
"""As on GPUs where they are asked for, fused AdamW and overlapped communication included, though on a CPU."""
CHECKPOINTED = {f"{way}_checkpointed": {**setting, "activation_checkpointing": True} for way, setting in PLAIN.items()}


def run(num_workers: int, tasks: list[dict[str, Any]], folder: Path) -> None:
    plan = folder / f"tasks{num_workers}.json"
    plan.write_text(json.dumps(tasks))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(TESTS), os.environ.get("PYTHONPATH", ""), *sys.path]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(plan)],
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_workers)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": os.pathsep.join(paths)},
                "PYTHONWARNINGS": "ignore",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_workers)
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), errors[0][-4000:]


def task(way: str, *, start: Path | None, saves: list[tuple[int, Path]], stage: int = 2) -> dict[str, Any]:
    return {
        "workers": (WAYS | CHECKPOINTED)[way],
        "stage": stage,
        "from": str(start) if start else "",
        "step": STOP if start else 0,
        "saves": [[steps, str(path)] for steps, path in saves],
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of W workers `W_WAY_stop`, `W_WAY_end`; from `stop`, `W_WAY_again`; from `2_zero1_stop`, `…_other`.

    Those are of stage 2. Of both stages and two workers, `stageS_WAY_stop` and `…_end`, for `zero1` and CHECKPOINTED.
    """
    folder = tmp_path_factory.mktemp("states")
    for num_workers in (2, 1):
        ways = WAYS if num_workers == 2 else PLAIN
        tasks = []
        for way in ways:
            name = f"{num_workers}_{way}"
            tasks.append(task(way, start=None, saves=[(STOP, folder / f"{name}_stop"), (END, folder / f"{name}_end")]))
            tasks.append(task(way, start=folder / f"{name}_stop", saves=[(END, folder / f"{name}_again")]))
            tasks.append(task(way, start=folder / "2_zero1_stop", saves=[(END, folder / f"{name}_other")]))
        run(num_workers, [*tasks, *checkpointed_tasks(folder)] if num_workers == 2 else tasks, folder)
    return folder


def checkpointed_tasks(folder: Path) -> list[dict[str, Any]]:
    tasks = []
    for way in ("zero1", *CHECKPOINTED):
        for stage in (1, 2):
            name = f"stage{stage}_{way}"
            saves = [(1, folder / f"{name}_stop"), (1, folder / f"{name}_end")]
            tasks.append(task(way, start=None, saves=saves, stage=stage))
    return tasks


def assert_same_way(
    mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> None:
    """Weights apart by little of the way they came, from the two steps before on."""
    for name, weight in other.items():
        if name.startswith("weights/"):
            moved = (weight - start[name]).norm()
            assert moved > 0
            assert (mine[name] - weight).norm() <= 2e-3 * moved, name


def assert_same_training(folder: Path, mine_: str, other_: str, *, at_least: int) -> None:
    """Losses, the first step's gradients (that many or more) and the weights' way."""
    mine, other = load_file(folder / f"{mine_}_end"), load_file(folder / f"{other_}_end")
    torch.testing.assert_close(mine["losses"], other["losses"], rtol=2e-6, atol=0)
    gradients = [name for name in other if name.startswith("gradient/")]
    assert len(gradients) >= at_least
    for name in gradients:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-4, atol=1e-6, msg=name)
    assert_same_way(mine, other, load_file(folder / f"{other_}_stop"))


@pytest.mark.parametrize("way", [f"2_{way}" for way in (PLAIN | OFFLOADED)] + [f"1_{way}" for way in PLAIN])
def test_loss_gradients_and_weights_do_not_depend_on_the_sharing(trained: Path, way: str) -> None:
    assert_same_training(trained, way, "1_zero1", at_least=20)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("way", CHECKPOINTED)
def test_recomputed_activations_change_neither_loss_nor_gradients_nor_weights(
    trained: Path, way: str, stage: int
) -> None:
    assert_same_training(trained, f"stage{stage}_{way}", f"stage{stage}_zero1", at_least=15)
    runs, without = (load_file(trained / f"stage{stage}_{name}_end")["layer_runs"] for name in (way, "zero1"))
    # Over prefixes and branches, and once more each; in stage 1 prefixes have no gradient.
    assert runs / without == (1.5 if stage == 1 else 2)


def test_gradients_of_another_step_are_told_apart(trained: Path) -> None:
    mine, other = load_file(trained / "1_zero1_again"), load_file(trained / "1_zero1_end")
    assert not any(
        torch.allclose(mine[name], other[name], rtol=1e-4, atol=1e-6) for name in other if name.startswith("gradient/")
    )


@pytest.mark.parametrize("way", [f"2_{way}" for way in WAYS] + [f"1_{way}" for way in PLAIN])
def test_the_same_workers_go_on_bit_for_bit(trained: Path, way: str) -> None:
    mine, other = load_file(trained / f"{way}_again"), load_file(trained / f"{way}_end")
    assert torch.equal(mine["losses"], other["losses"][STOP:])
    for name in other:
        if not name.startswith(("gradient/", "losses", "layer_runs")):
            assert torch.equal(mine[name], other[name]), name


@pytest.mark.parametrize("way", [f"2_{way}" for way in (PLAIN | OFFLOADED)] + [f"1_{way}" for way in PLAIN])
def test_other_workers_go_on_as_if_they_had_begun(trained: Path, way: str) -> None:
    mine, other = load_file(trained / f"{way}_other"), load_file(trained / "2_zero1_end")
    torch.testing.assert_close(mine["losses"], other["losses"][STOP:], rtol=2e-6, atol=0)
    assert_same_way(mine, other, load_file(trained / "2_zero1_stop"))
    for name in other:
        if name.startswith("exp_avg"):
            assert (mine[name] - other[name]).norm() <= 1e-4 * other[name].norm(), name


def test_weights_that_train_in_bfloat16_are_kept_in_32_bit(trained: Path) -> None:
    for name, weight in load_file(trained / "2_zero3_offload_bf16_stop").items():
        if name.startswith("weights/"):
            assert not torch.equal(weight, weight.bfloat16().float()), name
