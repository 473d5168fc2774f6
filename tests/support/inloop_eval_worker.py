"""One of several processes that train a tiny captioner and look at held-out images meanwhile: for test_watch.py.

Usage: RANK=0 WORLD_SIZE=2 ... look_worker.py TASKS.json; each task says how to train and where to write what came.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch

from ureca.config import config_from_dict
from ureca.corpus.table import iter_images, load_image
from ureca.model.captioner import Captioner
from ureca.model.packing import Example, RegionExample, pack
from ureca.training.deepspeed import deepspeed_config, parameter_groups
from ureca.training.monitor import inloop_eval
from ureca.training.plan import Plan

STEPS = 3


@contextmanager
def careless(model: torch.nn.Module) -> Iterator[None]:
    """A look that draws random numbers, and leaves the model as it wanted it."""
    model.eval()
    torch.rand(7)
    with torch.no_grad():
        yield


def batch_of(captioner: Captioner, plan: Plan, number: int) -> Any:
    row = [row for row in iter_images(plan.table) if row.status == "labeled"][number]
    query = captioner.processor.query("unique")
    regions = tuple(RegionExample(each.segmentation, query, each.caption or "") for each in row.regions)
    return pack([Example(load_image(row), regions)], captioner.processor, **captioner.pack_options())


def train(task: dict[str, Any]) -> dict[str, Any]:
    plan = config_from_dict(Plan, task["plan"], where="task")
    rank, num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    captioner = plan.captioner()
    config = deepspeed_config(plan.optimizer, plan.workers)
    engine, *_ = deepspeed.initialize(
        model=captioner, model_parameters=parameter_groups(captioner, plan.optimizer), config=config
    )
    engine.set_gradient_accumulation_boundary(True)
    watching = inloop_eval.InLoopEvaluator(
        plan.directory,
        plan.eval,
        cue=plan.cue,
        in_lockstep=plan.workers.zero_stage == 3,
        rank=rank,
        num_workers=num_workers,
    )
    torch.manual_seed(rank)  # of the dropout; never set again
    losses, looks = [], []
    for step in range(STEPS):
        if task["looks"]:
            looks.append(watching.evaluate(captioner, step))
        loss, _ = engine(batch_of(captioner, plan, rank + num_workers * step))
        losses.append(float(loss.detach()))
        engine.backward(loss / 10)
        engine.step()
    result = {
        "losses": losses,
        "captions": [[record["caption"] for record in look.records] for look in looks],
        "scores": [look.scores for look in looks],
    }
    engine.destroy()
    return result


def main() -> None:
    tasks = json.loads(Path(sys.argv[1]).read_text())
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    kept = inloop_eval.preserve_state
    for task in tasks:
        inloop_eval.preserve_state = careless if task["careless"] else kept
        result = train(task)
        Path(f"{task['output']}.{torch.distributed.get_rank()}").write_text(json.dumps(result))
        torch.distributed.barrier()
    with suppress(Exception):
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
