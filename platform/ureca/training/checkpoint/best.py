"""Model directory of a run's best checkpoint.

    <run>/model         after the last step
          model_best    of the checkpoint with the highest score, with `checkpoints.keep_best`

`model_best` is a copy of `model` with the checkpoint's trained weights, so the driver writes it without loading the
base or starting a worker.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ureca.model.captioner import MASK_ENCODER_FILE
from ureca.storage.local import atomic_folder
from ureca.training.checkpoint.files import MODEL_DIRECTORY, Checkpoint, best_checkpoint

BEST_DIRECTORY = "model_best"
_ADAPTER_FILE = "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class BestModel:
    directory: Path
    step: int
    """Step of the checkpoint."""
    score: float
    """Value of `eval.score`."""


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
    """Write `target` atomically: a copy of `model` with the weights of `checkpoint`."""
    with atomic_folder(target) as partial:
        shutil.copytree(model, partial, dirs_exist_ok=True)
        replace_weights(partial, checkpoint.parts["weights"])


def replace_weights(model: Path, weights: dict[str, Tensor]) -> None:
    """Put trained weights, by parameter name, into the files of a model directory, in the dtype that they have.

    A captioner trained in bfloat16 saves rounded weights; the float32 weights of its optimizer replace them here.
    """
    for file, trained in _by_file(weights).items():
        stored = load_file(model / file)
        assert trained.keys() <= stored.keys(), sorted(trained.keys() - stored.keys())
        stored |= {name: weight.contiguous() for name, weight in trained.items()}
        save_file(stored, model / file, metadata={"format": "pt"})


def _by_file(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group parameters by file of the model directory, under that file's names (peft's for the adapter)."""
    files: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        if name.startswith("mask_encoder."):
            files.setdefault(MASK_ENCODER_FILE, {})[name.removeprefix("mask_encoder.")] = weight
        else:
            own = name.removeprefix("base.").replace(".default.", ".")
            files.setdefault(_ADAPTER_FILE, {})[f"base_model.model.{own}"] = weight
    return files
