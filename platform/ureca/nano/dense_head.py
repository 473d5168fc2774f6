"""Dense supervision of nano's vision tower: the content under each cell of an image.

A temporary head reads, from the image token of 2 x 2 cells, the appearance of each cell's region and its parent. That
puts everything an answer may need where the language model will look for it, and dense supervision is much faster than
answers: 1,024 cells per image.

    color, texture, shape, size, word     of the deepest region at the cell's center; 0 = no region
    depth                                 1 = a whole thing
    parent's color, place in the parent   0 = no parent
    row, column                           of the image token itself, on its 16 x 16 grid
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ureca.attributes.vocabulary import COLORS, PLACES, SHAPES, SIZES, TEXTURES, base_color, place_of
from ureca.model.processor import GRID
from ureca.nano.architecture import IMAGE_TOKENS
from ureca.nano.scenes.catalog import KIND_WORDS
from ureca.nano.scenes.draw import Scene
from ureca.regions.rle import decode_rle, rle_bbox

SIDE = int(IMAGE_TOKENS**0.5)
CELLS = GRID // SIDE
"""Cells along each side of an image token."""


def _ids(names: Any) -> dict[str, int]:
    return {name: number for number, name in enumerate(names, start=1)}


_PLACE_IDS = _ids(sum(PLACES, ()))
IDS: dict[str, dict[str, int]] = {
    "color": _ids(COLORS),
    "texture": _ids(TEXTURES),
    "shape": _ids(SHAPES),
    "size": _ids(SIZES),
    "word": _ids(KIND_WORDS),
    "depth": _ids(range(1, 7)),  # type: ignore[arg-type]
    "parent_color": _ids(COLORS),
    "place_in_parent": _PLACE_IDS,
}
"""Question -> answer -> number; 0 stands for none."""

WEIGHTS = {"shape": 0.5, "size": 0.5, "depth": 0.5}
"""Attributes that the mask itself shows better weigh less."""


def dense_targets(scene: Scene) -> dict[str, Tensor]:
    """Return `(256, 4)` int64 for each question: the answer's number at the four cells of each image token.

    And `weight` `(256, 4)` float32, of mean 1: a region counts by the square root of its cells.
    """
    half = scene.image.shape[0] // GRID // 2
    deepest = np.full((GRID, GRID), len(scene.regions), dtype=np.int64)
    table = {name: np.zeros(len(scene.regions) + 1, dtype=np.int64) for name in IDS}
    for index, region in enumerate(scene.regions):
        mask = decode_rle(region.segmentation)
        deepest[mask[half :: 2 * half, half :: 2 * half]] = index
        own = region.attributes
        answers: dict[str, Any] = {name: own.get(name) for name in ("texture", "shape", "size")}
        answers |= {"color": base_color(own["color"]), "word": region.part or region.kind, "depth": region.depth + 1}
        if region.parent >= 0:
            parent = scene.regions[region.parent]
            ys, xs = np.nonzero(mask)
            x, y, w, h = rle_bbox(parent.segmentation)
            answers["parent_color"] = base_color(parent.attributes["color"])
            answers["place_in_parent"] = place_of((xs.mean() + 0.5 - x) / w, (ys.mean() + 0.5 - y) / h)
        for name, answer in answers.items():
            table[name][index] = IDS[name].get(answer, 0)
    tokens = deepest.reshape(SIDE, CELLS, SIDE, CELLS).transpose(0, 2, 1, 3).reshape(IMAGE_TOKENS, CELLS**2)
    targets = {name: torch.from_numpy(numbers[tokens]) for name, numbers in table.items()}
    # Otherwise background areas would dominate, and parts would not be learned.
    weights = np.bincount(tokens.ravel(), minlength=len(scene.regions) + 1).clip(1) ** -0.5
    return {**targets, "weight": torch.from_numpy((weights[tokens] / weights[tokens].mean()).astype(np.float32))}


class DenseHead(nn.Module):
    """Temporary head that reads the answers from the image tokens; not part of the base."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, CELLS**2 * (len(ids) + 1)) for name, ids in IDS.items()})
        self.places = nn.ModuleDict({name: nn.Linear(width, SIDE) for name in ("row", "column")})

    def forward(self, tokens: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Compute summed mean losses and accuracy by question from `(B, 256, D)` image tokens and `(B, 256, 4)`
        targets."""
        x = self.norm(tokens)
        weight = targets["weight"].flatten()
        losses, right = [], {}
        for name, head in self.heads.items():
            target = targets[name].flatten()
            logits = head(x).view(-1, len(IDS[name]) + 1).float()
            loss = nn.functional.cross_entropy(logits, target, reduction="none")
            losses.append(WEIGHTS.get(name, 1.0) * (loss * weight).mean())
            hit, asked = logits.detach().argmax(-1) == target, weight * (target > 0)
            right[name] = float((hit * asked).sum() / asked.sum())
        grid = torch.arange(IMAGE_TOKENS)
        for head, target in zip(self.places.values(), (grid // SIDE, grid % SIDE), strict=True):
            logits = head(x).flatten(0, 1).float()
            losses.append(0.5 * nn.functional.cross_entropy(logits, target.repeat(len(tokens))))
        return torch.stack(losses).sum(), right

    def directions(self, count: int) -> Tensor:
        """Return `(count, D)`: the directions of a normed image token that answers are read from, most used first."""
        weights = torch.cat([next(head.parameters()) for head in self.heads.values()])
        return torch.linalg.svd(weights.float(), full_matrices=False).Vh[:count]
