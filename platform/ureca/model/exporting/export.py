"""Export: merge LoRA and write the files that a server loads.

config.json, model*.safetensors     a plain HF-native InternVL that stock transformers and vLLM load
mask_encoder.safetensors            and captioner_config.json: mask encoder and projection
tokenizer and processor files
training.json                       training data and recipe, from the model directory
README.md                           the model card (card.py)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ureca.errors import CheckpointError
from ureca.model.captioner import MASK_ENCODER_FILE, Captioner
from ureca.model.exporting.card import CardText, model_card
from ureca.model.internvl.licenses import license_of
from ureca.storage.local import atomic_folder

CARD_FILE = "README.md"
TRAINING_FILE = "training.json"
_DECIDING_FILES = ("*.safetensors", "*config.json", "*token*.json", "vocab.json", "merges.txt", "*.model")


def export(
    model_dir: str | Path,
    out_dir: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    card: CardText | None = None,
    scores: Mapping[str, Any] | None = None,
    verify: Callable[[Path], str] | None = None,
) -> Path:
    """Merge the model directory's adapter into its base and write the export atomically.

    Args:
        dtype: dtype of the stored weights.
        card: additional text of the model card; None: recorded facts only, under the folder's name.
        scores: scores.json of an evaluation of this model.
        verify: called with the folder before it gets its final name; returns one sentence for the card, or
            raises, and then there is no export.

    Returns:
        `out_dir`.

    Raises:
        CheckpointError: `model_dir` is not a model directory, or its base differs; or what `verify` raises.
    """
    out = Path(out_dir)
    captioner = Captioner.from_pretrained(model_dir)
    _refuse_unusable(captioner, model_dir)
    _merge(captioner, dtype)
    base: Any = captioner.base
    base = base.to(dtype)
    with atomic_folder(out) as scratch:
        base.save_pretrained(scratch)
        _write_index(scratch)
        captioner.processor.save_pretrained(str(scratch))
        captioner.config.save(scratch)
        state = {k: v.to(dtype).contiguous() for k, v in captioner.mask_encoder.state_dict().items()}
        save_file(state, scratch / MASK_ENCODER_FILE, metadata={"format": "pt"})
        training = read_training(model_dir)
        if training:
            shutil.copyfile(Path(model_dir) / TRAINING_FILE, scratch / TRAINING_FILE)
        checked = verify(scratch) if verify else ""
        text = model_card(
            captioner.config,
            license=license_of(captioner.config.base),
            training=training,
            scores=scores or {},
            text=card or CardText(name=out.name),
            dtype=str(dtype).removeprefix("torch."),
            parameters=sum(value.numel() for value in base.parameters()),
            mask_encoder_parameters=sum(value.numel() for value in state.values()),
            checked=checked,
        )
        (scratch / CARD_FILE).write_text(text, encoding="utf-8")
    return out


def export_digest(directory: str | Path) -> str:
    """Return the SHA-256 over the files of an export that affect captions: weights, configurations, tokenizer."""
    digest = hashlib.sha256()
    folder = Path(directory)
    for path in sorted({path for pattern in _DECIDING_FILES for path in folder.glob(pattern)}):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def merged(model_dir: str | Path, dtype: torch.dtype, *, device: str = "cpu") -> Captioner:
    """Load a model directory with its adapter merged; weights are float32, rounded to `dtype`."""
    captioner = Captioner.from_pretrained(model_dir, device=device)
    _merge(captioner, dtype)
    return captioner


def _merge(captioner: Captioner, dtype: torch.dtype) -> None:
    captioner.merge_lora()
    with torch.no_grad():
        # Only the state: buffers that a model computes at load (rotary frequencies) must not be rounded.
        for value in captioner.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(dtype))


def _refuse_unusable(captioner: Captioner, model_dir: str | Path) -> None:
    """Raise CheckpointError for weights that are not finite, and for an adapter that changes nothing."""
    parameters = dict(captioner.named_parameters())
    for name, value in parameters.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{model_dir}: {name} has values that are not finite; train again from a checkpoint")
    outputs = [value for name, value in parameters.items() if ".lora_B." in name]
    if outputs and not any(value.any() for value in outputs):
        raise CheckpointError(
            f"{model_dir}: its adapter is untrained (every lora_B is 0), so the export would equal the base; run "
            "jobs/train_stage2.py, or export the stage 1 model"
        )


def read_training(directory: str | Path) -> dict[str, Any]:
    """Read the training record of a model directory or export; empty if nothing was recorded.

    Raises:
        CheckpointError: the file exists but can't be read.
    """
    path = Path(directory) / TRAINING_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}). Remove it to state the training as not recorded."
        ) from error
    return dict(record) if isinstance(record, dict) else {}


def _write_index(directory: Path) -> None:
    """Write an index of the base's weights: without one, vLLM loads every *.safetensors file of the folder."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        with safe_open(directory / "model.safetensors", "pt") as weights:
            weight_map = dict.fromkeys(weights.keys(), "model.safetensors")
        size = (directory / "model.safetensors").stat().st_size
        record = {"metadata": {"total_size": size}, "weight_map": weight_map}
        index.write_text(json.dumps(record, indent=2) + "\n")
