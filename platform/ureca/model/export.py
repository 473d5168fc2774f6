"""Export: merge LoRA and write what a server loads.

A plain HF-native InternVL checkpoint (any stock vLLM server loads it) with `mask_encoder.safetensors`,
`captioner_config.json` and the processor beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ureca.model.captioner import MASK_ENCODER_FILE, Captioner


def export(model_dir: str | Path, out_dir: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Merge the model directory's adapter into its base and write the export atomically.

    Args:
        dtype: of the stored weights.

    Returns:
        `out_dir`. Raises CheckpointError if `model_dir` is no model directory or its base differs.
    """
    out = Path(out_dir)
    captioner = Captioner.from_pretrained(model_dir)
    base: Any = captioner.merge_lora()
    base = base.to(dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        base.save_pretrained(scratch)
        _write_index(scratch)
        captioner.processor.save_pretrained(str(scratch))
        captioner.config.save(scratch)
        state = {k: v.to(dtype).contiguous() for k, v in captioner.mask_encoder.state_dict().items()}
        save_file(state, scratch / MASK_ENCODER_FILE, metadata={"format": "pt"})
        scratch.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _write_index(directory: Path) -> None:
    """Say which file holds the base's weights: without an index vLLM loads every *.safetensors there is."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        with safe_open(directory / "model.safetensors", "pt") as weights:
            weight_map = dict.fromkeys(weights.keys(), "model.safetensors")
        size = (directory / "model.safetensors").stat().st_size
        record = {"metadata": {"total_size": size}, "weight_map": weight_map}
        index.write_text(json.dumps(record, indent=2) + "\n")
