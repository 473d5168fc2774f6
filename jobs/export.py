#!/usr/bin/env python
"""Export a trained captioner: LoRA merged into the base, a folder that vLLM loads as it is.

    python jobs/export.py --model runs/train_stage2/model --output runs/export

Next: serve it (serve_apps/captioner.yaml), or caption a photo with it (ureca caption).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bootstrap  # noqa: F401  (finds ureca beside the jobs where it is not installed)

from ureca.config import load_config
from ureca.runs import run_job


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    model: str = "runs/train_stage2/model"
    """Model directory, as train_stage1 or train_stage2 wrote it."""
    output: str = "runs/export"
    """Folder to write; an export that is there already is replaced."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the stored weights. float32 for CPUs, bfloat16 for GPUs."""


def main() -> None:
    config = load_config(ExportConfig, description=__doc__ or "")
    import torch  # after the options were read: it takes seconds

    from ureca.model import export

    folder = export(config.model, config.output, dtype=getattr(torch, config.dtype))
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"written to {folder} ({size / 2**20:.0f} MB)")


if __name__ == "__main__":
    run_job(main)
