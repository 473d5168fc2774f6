"""Verify that an export gives the same captions as the model directory it was made from.

    python -m ureca.model.exporting.verify EXPORT DEVICE     captions as one JSON list

The probe is an image of noise and boxes with regions of several sizes. Captions are greedy, in float32, and must be
identical: both use the same weights, rounded the same way.
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
    """Image and regions that both sides caption."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    regions: tuple[Rle, ...]
    styles: tuple[str, ...]

    def ask(self, captioner: Captioner) -> list[str]:
        """Return the captioner's captions."""
        queries = [captioner.processor.query(style) for style in self.styles]
        return captioner.generate(self.image, list(self.regions), queries, max_new_tokens=_TOKENS)


def probe(seed: int = 0) -> Probe:
    """Return the probe; deterministic for a seed."""
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


def verify_export(model_dir: str | Path, export_dir: str | Path, *, dtype: torch.dtype, device: str = "cpu") -> str:
    """Load an export in a new process, compare its captions with the model directory's, and return the result as text.

    Raises:
        CheckpointError: a caption differs, or the new process can't load the export; names the first difference.
    """
    asked = probe()
    expected = asked.ask(merged(model_dir, dtype, device=device))
    found = captions_in_new_process(export_dir, device=device)
    for number, (mine, theirs) in enumerate(zip(expected, found, strict=True)):
        if mine != theirs:
            raise CheckpointError(
                f"{export_dir}: after a fresh load it captions region {number} of the probe {theirs!r}, while "
                f"{model_dir} gives {mine!r}. Export again; if that repeats, do not use the export."
            )
    return (
        f"Verified: loaded in a new process by transformers, it gives the same {len(found)} captions as the model "
        "it was made from."
    )


def captions_in_new_process(export_dir: str | Path, *, device: str = "cpu") -> list[str]:
    """Return the probe's captions from a process that loads only the export. Raises CheckpointError."""
    command = [sys.executable, "-m", "ureca.model.exporting.verify", str(export_dir), device]
    # The new process can import everything that is importable here.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"{export_dir}: a new process can't load it: {last}")
    captions: list[str] = json.loads(done.stdout.splitlines()[-1])
    return captions


def _main(argv: list[str]) -> None:
    print(json.dumps(probe().ask(Captioner.from_pretrained(argv[0], device=argv[1]))))


if __name__ == "__main__":
    _main(sys.argv[1:])
