#!/usr/bin/env python
"""Convert an official InternVL 2.5, 3 or 3.5 checkpoint (with remote code) into an HF-native base.

    python jobs/convert_base.py --source InternVL2_5-8B-MPO --output bases/InternVL2_5-8B-MPO

Runs no code of the checkpoint, keeps the dtype of its weights, and needs memory for one weights file. Next:
jobs/train_stage1.py --preset internvl2.5-8b --base bases/InternVL2_5-8B-MPO
"""

import time
from dataclasses import dataclass
from pathlib import Path

import bootstrap  # noqa: F401  (makes ureca importable if it is not installed)

from ureca.config import load_config
from ureca.errors import ConfigError
from ureca.runs import Progress, run_job


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    source: str
    """Folder of the official checkpoint: config.json, *.safetensors and the tokenizer's files."""
    output: str
    """Folder to write; must not exist."""
    shard_gib: float = 4.0
    """Maximum size of a weights file in GiB; also roughly the memory needed."""

    def __post_init__(self) -> None:
        if not self.shard_gib > 0:
            raise ConfigError(f"shard_gib={self.shard_gib}: must be above 0.")


def main() -> None:
    config = load_config(ConvertConfig, description=__doc__ or "")
    from ureca.model.internvl.architectures import (  # slow import, after the options are parsed
        parameter_counts,
        read_config,
        skeleton,
    )
    from ureca.model.internvl.convert import convert_base

    started = time.monotonic()
    shown: list[Progress] = []

    def progress(done: int, total: int) -> None:
        if not shown:
            shown.append(Progress("convert", total, unit="weights"))
        shown[0].update(done)

    folder = convert_base(
        Path(config.source), Path(config.output), shard_bytes=int(config.shard_gib * 2**30), progress=progress
    )
    for line in shown:
        line.close()
    total = parameter_counts(skeleton(read_config(str(folder)))).total
    print(f"written to {folder}: {total:,} parameters, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    run_job(main)
