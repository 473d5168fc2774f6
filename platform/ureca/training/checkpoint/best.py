"""The model of a run's best checkpoint, beside the one of its last step.

    <run>/model         after the last step
          model_best    of the checkpoint with the highest score, where `checkpoints.keep_best` asks for it

The two differ in what trains alone: `model_best` is a copy of `model` with a checkpoint's weights in it. So the driver
makes it, with neither the base nor a worker.
"""

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ureca.model.captioner import MASK_ENCODER_FILE
from ureca.training.checkpoint.files import MODEL_DIRECTORY, Checkpoint, best_checkpoint

BEST_DIRECTORY = "model_best"
_ADAPTER_FILE = "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class BestModel:
    directory: Path
    step: int
    """Steps behind its checkpoint."""
    score: float
    """Its `eval.score`."""


def make_best_model(directory: Path, checkpoints: str, score: str) -> BestModel | None:
    """Write `<run>/model_best` atomically from `<run>/model` and the checkpoint with the highest `score`.

    None if no checkpoint was scored by that metric; an older `model_best` is then removed.

    Raises:
        StorageError: S3 refuses or does not answer.
    """
    target = directory / BEST_DIRECTORY
    checkpoint = best_checkpoint(checkpoints, score)
    if checkpoint is None or checkpoint.score is None:
        shutil.rmtree(target, ignore_errors=True)
        return None
    make_model_of(checkpoint, directory / MODEL_DIRECTORY, target)
    return BestModel(target, checkpoint.step, checkpoint.score)


def make_model_of(checkpoint: Checkpoint, model: Path, target: Path) -> None:
    """Write `target`, in one piece: the run's trained `model` with the weights of one of its checkpoints."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        shutil.copytree(model, partial)
        for file, weights in _by_file(checkpoint.parts["weights"]).items():
            stored = load_file(partial / file)
            assert weights.keys() <= stored.keys(), sorted(weights.keys() - stored.keys())
            stored |= {name: weight.to(stored[name].dtype) for name, weight in weights.items()}
            save_file(stored, partial / file, metadata={"format": "pt"})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _by_file(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Parameters of a captioner under their names in the files of its model directory, the adapter's as peft has it."""
    files: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        if name.startswith("mask_encoder."):
            files.setdefault(MASK_ENCODER_FILE, {})[name.removeprefix("mask_encoder.")] = weight
        else:
            own = name.removeprefix("base.").replace(".default.", ".")
            files.setdefault(_ADAPTER_FILE, {})[f"base_model.model.{own}"] = weight
    return files
