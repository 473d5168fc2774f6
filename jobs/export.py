#!/usr/bin/env python
"""Export a trained captioner: merge LoRA into the base and write a folder that vLLM loads, with a model card.

    python jobs/export.py --model runs/train_stage2/model --output runs/export --scores runs/evaluate/scores.json

The export is verified: a new process loads it and must give the model's captions (--verify=vllm: an engine too). Next:
serve it (serve_apps/captioner.yaml), or caption a photo with it (ureca caption).
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bootstrap  # noqa: F401  (makes ureca importable if it is not installed)

from ureca.config import load_config
from ureca.devices import choose_device
from ureca.runs import run_job
from ureca.storage.files import read_json


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    model: str = "runs/train_stage2/model"
    """Model directory written by train_stage1, 2 or 3."""
    output: str = "runs/export"
    """Folder to write; an existing export is replaced."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the stored weights: float32 for CPUs, bfloat16 for GPUs."""
    scores: str = ""
    """scores.json of an evaluation of this model, for the model card."""
    variant: str = "mask_stage2"
    """Row of these scores that is this model."""
    title: str = ""
    """Title of the card; empty: the folder's name."""
    about: str = ""
    """Markdown at the top of the card; empty: a general description."""
    license: str = ""
    """License of the trained additions as a hub identifier (apache-2.0); empty: the base's license."""
    data: str = ""
    """One line for the card on the source of the images and their license, which the table does not record."""
    limits: str = ""
    """Markdown for the card: further limitations of the model."""
    datasets: tuple[str, ...] = ()
    """Hub names of the data, for the card."""
    language: tuple[str, ...] = ("en",)
    """Languages of the captions."""
    device: str = ""
    """Device of the verification: cpu, cuda or cuda:1. Empty: a GPU if there is one, else the CPU."""
    verify: Literal["none", "transformers", "vllm"] = "transformers"
    """Check of the export against the model; `vllm` also starts an engine."""


def main() -> None:
    config = load_config(ExportConfig, description=__doc__ or "")
    scores = read_json(config.scores) if config.scores else {}
    import torch  # slow import, after the options are parsed

    from ureca.model.exporting.card import CardText
    from ureca.model.exporting.export import export
    from ureca.model.exporting.verify import verify_export

    fields = {"title", "about", "license", "data", "limits", "datasets", "language", "variant"}
    card = CardText(name=Path(config.output).name, **{name: getattr(config, name) for name in fields})
    device = choose_device(config.device)
    dtype = getattr(torch, config.dtype)

    def verify(folder: Path) -> str:
        checked = verify_export(config.model, folder, dtype=dtype, device=device)
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
