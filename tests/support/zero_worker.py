"""One of several processes that train a tiny captioner under every way of sharing out: for test_states.py.

Usage: RANK=0 WORLD_SIZE=2 ... zero_worker.py PLAN.json, with what to do and where to write it.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import load_file, save_file

from support.captioners import drawn_example, tiny_captioner
from ureca.model.captioner import Captioner
from ureca.model.packing import pack
from ureca.training.checkpoint.files import PARTS
from ureca.training.checkpoint.optimizer_state import ResumeState, gather, restore
from ureca.training.config import OptimizerConfig, WorkersConfig
from ureca.training.deepspeed import deepspeed_config, loss_for_backward, parameter_groups

IMAGES_PER_STEP = 4
RATE = 3e-3
PERSISTENT = 1000
"""Elements."""


def new_captioner(workers: WorkersConfig, stage: int) -> Captioner:
    captioner = tiny_captioner().float()
    if stage == 2:
        torch.manual_seed(0)
        captioner.add_lora(rank=3, dropout=0.0)  # of 3: pieces that do not divide by two workers
    captioner.trainable(stage, tune_mask_encoder=True)
    if workers.activation_checkpointing:
        captioner.checkpoint_activations()
    return captioner


class Training:
    """A captioner in an engine, from its beginning or from gathered parts."""

    def __init__(
        self, workers: WorkersConfig, parts: dict[Any, Any] | None = None, step: int = 0, stage: int = 2
    ) -> None:
        self.num_workers, self.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        captioner = new_captioner(workers, stage)
        resumed = ResumeState(step, parts, torch.device("cpu")) if parts is not None else None
        if resumed:
            with torch.no_grad():
                for parameter, tensor in resumed.tensors("weights", captioner):
                    parameter.copy_(tensor)
        optimizer = OptimizerConfig(learning_rate=RATE)
        config = deepspeed_config(optimizer, workers)
        # As in a model of real size norms stay whole, matrices are shared out: of this one all would stay whole.
        config["zero_optimization"]["stage3_param_persistence_threshold"] = PERSISTENT
        self.engine, *_ = deepspeed.initialize(
            model=captioner,
            model_parameters=parameter_groups(captioner, optimizer),
            config=config,
        )
        if workers.zero_stage == 3:
            assert any(not (p.requires_grad or p.ds_persist) for p in captioner.parameters())
        if resumed:
            restore(self.engine, resumed)
        self.step = step
        self.losses: list[float] = []
        self.layer_runs = 0
        """Change of the language model's first layer since the start."""
        captioner.base.model.language_model.layers[0].mlp.register_forward_pre_hook(self._count)
        self.gradients: dict[str, torch.Tensor] = {}

    def _count(self, *_: object) -> None:
        self.layer_runs += 1

    def train(self, steps: int) -> None:
        for _ in range(steps):
            examples = [
                drawn_example(1 + n % 3, seed=n + 10 * self.step, size=(90, 120)) for n in range(IMAGES_PER_STEP)
            ]
            captioner = self.engine.module
            batches = [pack([each], captioner.processor, **captioner.pack_options()) for each in examples]
            tokens = sum(int((batch.labels >= 0).sum()) for batch in batches)
            share = IMAGES_PER_STEP // self.num_workers
            total = torch.zeros((), dtype=torch.float64)
            for number, batch in enumerate(batches[self.rank * share : (self.rank + 1) * share]):
                self.engine.set_gradient_accumulation_boundary(number == share - 1)
                loss, _ = self.engine(batch)
                total += loss.detach()
                self.engine.backward(loss_for_backward(loss / tokens, self.num_workers), scale_wrt_gas=False)
                if not self.losses and number == share - 1:
                    for name, parameter in captioner.named_parameters():
                        if parameter.requires_grad:
                            self.gradients[name] = safe_get_full_grad(parameter).detach().float().clone()
                self.engine.step()
            torch.distributed.all_reduce(total)
            self.losses.append(float(total) / tokens)
            self.step += 1

    def save(self, path: Path) -> None:
        parts = {f"{part}/{name}": value for part in PARTS for name, value in gather(self.engine, part).items()}
        if self.rank == 0:
            gradients = {f"gradient/{name}": value.contiguous() for name, value in self.gradients.items()}
            losses = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
            runs = {"layer_runs": torch.tensor(self.layer_runs)}
            save_file({**parts, **gradients, **losses, **runs}, path)
        torch.distributed.barrier()


def load_parts(path: Path) -> dict[Any, Any]:
    found = load_file(path)
    return {
        part: {name.removeprefix(f"{part}/"): value for name, value in found.items() if name.startswith(f"{part}/")}
        for part in PARTS
    }


def main() -> None:
    tasks = json.loads(Path(sys.argv[1]).read_text())
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for task in tasks:
        workers = WorkersConfig(**task["workers"])
        parts = load_parts(Path(task["from"])) if task["from"] else None
        training = Training(workers, parts, task["step"], task["stage"])
        for steps, path in task["saves"]:
            training.train(steps)
            training.save(Path(path))
        training.engine.destroy()
    with suppress(Exception):
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
