"""Does an export caption as the model that it was made from?

    python -m ureca.model.exporting.verify EXPORT        the captions of a process that has seen only EXPORT, as one JSON list

The probe is a picture of noise and boxes with regions of several sizes; captions are greedy, in 32 bits, and must be
equal to the letter: the weights are the same ones, rounded alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner
from ureca.model.exporting.export import merged
from ureca.regions.rle import Rle, box_to_rle

_SIZE = (360, 480)
_TOKENS = 24


@dataclass(frozen=True)
class Probe:
    """What both sides are asked about."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    regions: tuple[Rle, ...]
    styles: tuple[str, ...]

    def ask(self, captioner: Captioner) -> list[str]:
        """A captioner's own answers."""
        queries = [captioner.processor.query(style) for style in self.styles]
        return captioner.generate(self.image, list(self.regions), queries, max_new_tokens=_TOKENS)


def probe(seed: int = 0) -> Probe:
    """Always the same picture for the same seed."""
    draw = np.random.default_rng(seed)
    height, width = _SIZE
    image = draw.integers(0, 60, (height, width, 3)).astype(np.uint8)
    regions = []
    for number in range(4):
        left, top = (int(draw.integers(0, side // 2)) for side in (width, height))
        right, bottom = left + 20 + 50 * number, top + 15 + 45 * number
        image[top:bottom, left:right] = draw.integers(60, 256, 3)
        regions.append(box_to_rle((left, top, right, bottom), _SIZE))
    return Probe(image, tuple(regions), ("unique", "brief", "detailed", "unique"))


def verify_export(model_dir: str | Path, export_dir: str | Path, *, dtype: torch.dtype) -> str:
    """Load an export in a new process, hold its captions against the model directory's, and say what came of it.

    Raises:
        CheckpointError: a caption differs, or the new process can't load the export; names the first difference.
    """
    asked = probe()
    expected = asked.ask(merged(model_dir, dtype))
    found = captions_in_new_process(export_dir)
    for number, (mine, theirs) in enumerate(zip(expected, found, strict=True)):
        if mine != theirs:
            raise CheckpointError(
                f"{export_dir}: loaded afresh, it captions region {number} of the probe {theirs!r}, "
                f"{model_dir} says {mine!r}. Export again; if that repeats, the export is not to be used."
            )
    return f"Verified: loaded afresh by transformers, it gives the {len(found)} captions of the model it was made from."


def captions_in_new_process(export_dir: str | Path) -> list[str]:
    """The probe's captions from a process that has loaded nothing but the export. Raises CheckpointError."""
    command = [sys.executable, "-m", "ureca.model.exporting.verify", str(export_dir)]
    # What this process found importable is so there, however it got onto the path.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"{export_dir}: a new process could not load it: {last}")
    captions: list[str] = json.loads(done.stdout.splitlines()[-1])
    return captions


def _main(argv: list[str]) -> None:
    print(json.dumps(probe().ask(Captioner.from_pretrained(argv[0]))))


if __name__ == "__main__":
    _main(sys.argv[1:])
