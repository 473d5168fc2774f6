"""Trainings that several modules share: each starts workers on the session's Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.trainings import Trained, stage1

from ureca.training.config import Stage1Config, Stage2Config
from ureca.training.launch import fit
from ureca.training.plan import Plan


@pytest.fixture(scope="session")
def train(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:  # noqa: ARG001
    def run(config: Stage1Config | Stage2Config) -> Trained:
        directory = tmp_path_factory.mktemp("run")
        return Trained(directory, config, fit(config, directory))

    return run


@pytest.fixture(scope="session")
def two_workers(train: Callable[..., Trained], tiny_base: Path, region_table: Path) -> Trained:
    """Stage 1 with two workers, ZeRO 1, all its checkpoints kept: what others are compared with, or go on from."""
    return train(stage1(tiny_base, region_table, num_workers=2, num_to_keep=9))


@pytest.fixture(scope="session")
def fresh_mask_encoder(two_workers: Trained) -> dict[str, torch.Tensor]:
    captioner = Plan.from_config(two_workers.config, two_workers.directory).captioner()
    return {name: value.detach().clone() for name, value in captioner.mask_encoder.state_dict().items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
