"""Checkpoints of a training: for going on, not for using (that is the model directory).

    <run>/checkpoints/checkpoint_…/record.json   step, seed, the base's hash, the plan
                                   state/        DeepSpeed's: what trains, and the optimizer's shards

The frozen base is not in it but loaded from its own source; hence its hash is, and another base is refused.
Each worker writes its shards, Ray Train merges them into one folder and keeps the newest.
"""

import tempfile
from pathlib import Path
from typing import Any

from ureca.cluster import before_importing_ray
from ureca.errors import CheckpointError
from ureca.io import read_json, write_json
from ureca.training.plan import Plan, refuse_other_plan

__all__ = ["CHECKPOINTS_DIRECTORY", "MODEL_DIRECTORY", "load_checkpoint", "report_checkpoint", "steps_done"]

CHECKPOINTS_DIRECTORY = "checkpoints"
MODEL_DIRECTORY = "model"
"""Where in a run's folder the trained model directory appears when training is done."""

_RECORD = "record.json"
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_TAG = "state"


def report_checkpoint(engine: Any, plan: Plan, base_hash: str, *, step: int, score: float | None = None) -> None:
    """Save what trains after `step` steps and report it to Ray Train. All workers must call this."""
    import ray.train
    import torch.distributed

    with tempfile.TemporaryDirectory() as directory:
        engine.save_checkpoint(directory, tag=_TAG, exclude_frozen_parameters=True)
        record = {"step": step, "seed": plan.seed, "base_hash": base_hash, "plan": plan.identity()}
        write_json(str(Path(directory) / _RECORD), record)
        torch.distributed.barrier()
        ray.train.report({"step": step, "score": score}, checkpoint=ray.train.Checkpoint.from_directory(directory))


def load_checkpoint(engine: Any, plan: Plan, base_hash: str) -> int:
    """Load Ray Train's latest checkpoint of this run into the engine; returns the steps done (0 without one).

    Raises:
        CheckpointError: it was made from another base or under another plan.
    """
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as directory:
        record = read_json(str(Path(directory) / _RECORD))
        refuse_other_plan(plan.directory, record["plan"], plan.identity())
        if record["base_hash"] != base_hash:
            raise CheckpointError(
                f"{plan.directory}: its checkpoint was made from a base with weights "
                f"{record['base_hash'][:12]}, the base {plan.base} now has {base_hash[:12]}. "
                "Put the former base back, or give another --run_directory."
            )
        # Strict would miss the frozen weights, which are left out on purpose.
        engine.load_checkpoint(directory, tag=_TAG, load_module_strict=False)
    return int(record["step"])


def steps_done(plan: Plan) -> int:
    """Steps that the latest checkpoint in a run's folder has behind it; 0 without one. Starts no process.

    Raises:
        CheckpointError: it was made under another plan, or can't be read.
    """
    folder = Path(plan.directory) / CHECKPOINTS_DIRECTORY
    # Ray Train enters a checkpoint here once all workers have reported it; one without an entry may be half.
    if not (folder / _SNAPSHOT).is_file():
        return 0
    before_importing_ray()
    from ray.train import Result

    try:
        checkpoint = Result.from_path(str(folder)).checkpoint
        record = read_json(str(Path(checkpoint.path) / _RECORD)) if checkpoint else None
    except Exception as error:  # Ray Train raises many kinds for a snapshot that it can't read
        raise CheckpointError(
            f"{folder}: its checkpoints can't be read ({error}). Remove the folder to start from the "
            "beginning, or run with the Ray version that wrote them."
        ) from error
    if record is None:
        return 0
    refuse_other_plan(plan.directory, record["plan"], plan.identity())
    return int(record["step"])
