#!/usr/bin/env python
"""Export a trained captioner: LoRA merged into the base, a folder that vLLM loads as it is, with its model card.

    python jobs/export.py --model runs/train_stage2/model --output runs/export --scores runs/evaluate/scores.json

Verified before it ends: a new process loads it and must caption as the model does (--verify=vllm: an engine too).
Next: serve it (serve_apps/captioner.yaml), or caption a photo with it (ureca caption).
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bootstrap  # noqa: F401  (finds ureca beside the jobs where it is not installed)

from ureca.config import load_config
from ureca.runs import run_job
from ureca.storage.files import read_json


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    model: str = "runs/train_stage2/model"
    """Model directory, as train_stage1, 2 or 3 wrote it."""
    output: str = "runs/export"
    """Folder to write; an export that is there already is replaced."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the stored weights. float32 for CPUs, bfloat16 for GPUs."""
    scores: str = ""
    """scores.json of an evaluation of this model, for the card."""
    variant: str = "mask_stage2"
    """The row of these scores that is this model."""
    title: str = ""
    """Title of the card; empty: the folder's name."""
    about: str = ""
    """Markdown that the card begins with; empty: what can be said of any captioner."""
    license: str = ""
    """Of what training added, as the hub writes it (apache-2.0); empty: the base's holds for all."""
    data: str = ""
    """One line for the card on where the images come from, and under which license: the table does not know."""
    limits: str = ""
    """Markdown for the card: what else the model can't do."""
    datasets: tuple[str, ...] = ()
    """Hub names of the data, for the card."""
    language: tuple[str, ...] = ("en",)
    """Of the captions."""
    verify: Literal["none", "transformers", "vllm"] = "transformers"
    """How the export is checked against the model; `vllm` starts an engine after the rest."""


def main() -> None:
    config = load_config(ExportConfig, description=__doc__ or "")
    scores = read_json(config.scores) if config.scores else {}
    import torch  # after the options were read: it takes seconds

    from ureca.model.exporting.card import CardText
    from ureca.model.exporting.export import export
    from ureca.model.exporting.verify import verify_export

    told = {"title", "about", "license", "data", "limits", "datasets", "language", "variant"}
    card = CardText(name=Path(config.output).name, **{name: getattr(config, name) for name in told})
    dtype = getattr(torch, config.dtype)

    def verify(folder: Path) -> str:
        checked = verify_export(config.model, folder, dtype=dtype)
        if config.verify == "vllm":
            from ureca.engine.parity import verify_engine

            checked += " " + asyncio.run(verify_engine(folder))
        print(checked)
        return checked

    folder = export(
        config.model,
        config.output,
        dtype=dtype,
        card=card,
        scores=scores,
        verify=None if config.verify == "none" else verify,
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"written to {folder} ({size / 2**20:.0f} MB), its card is {folder / 'README.md'}")


if __name__ == "__main__":
    run_job(main)
