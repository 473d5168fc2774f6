"""Masks in, tokens out: `(R, T, 1, H, W)` binary or soft masks -> `(R, T, N, D)` mask tokens.

Two encoders behind one interface, N tokens a tile each:

- `channels`: the architecture of the URECA paper (arXiv 2504.05305, section 4.1 and appendix A). Two 3x3
  convolutions of stride 2 give N channels; every channel's map is flattened and goes through one projection
  shared by all channels. A token is a filter over the whole tile.
- `tokens` (default): the same convolutions, pooled to a 16x16 grid and scaled to unit length, so that a tiny
  region weighs as much as a large one; the length itself is one more input. Each token knows which of the N it
  is and where its tile lies in the image. The output has the norm of the language model's own embeddings
  (a learned gain), where the paper's is hundreds of times larger at the start.

Shapes: R regions, T tiles (thumbnail last), N tokens a tile, D hidden size of the language model, G pooled grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ureca.errors import ConfigError

POOLED_GRID = 16


@dataclass(frozen=True, kw_only=True)
class MaskEncoderConfig:
    kind: Literal["tokens", "channels"] = "tokens"
    """`tokens` knows tile and place and has unit scale; `channels` is the paper's architecture."""
    tokens_per_tile: int = 8
    """N. The paper's stated default is 8; its best table row uses 16."""
    projection: Literal["linear", "mlp"] = "mlp"
    """`mlp` as in the paper's text (two layers), `linear` as in its code."""
    tile_px: int = 448
    """Side of a tile in pixels; must be that of the base's image tiles."""
    hidden_size: int = 4096
    """D, the language model's embedding width."""
    embedding_norm: float = 1.0
    """Root mean square of one element of the base's text embeddings: where the `tokens` gain starts."""

    def __post_init__(self) -> None:
        if self.kind not in ("tokens", "channels"):
            raise ConfigError(f"mask encoder kind={self.kind!r}: use 'tokens' or 'channels'")
        if self.projection not in ("linear", "mlp"):
            raise ConfigError(f"mask encoder projection={self.projection!r}: use 'linear' or 'mlp'")
        if self.tokens_per_tile < 1:
            raise ConfigError(f"mask encoder tokens_per_tile={self.tokens_per_tile}: must be at least 1")
        if self.tile_px % (4 * POOLED_GRID):
            raise ConfigError(
                f"mask encoder tile_px={self.tile_px}: must be a multiple of {4 * POOLED_GRID} "
                "(two strided convolutions, then a 16x16 grid)"
            )


def tile_boxes(columns: int, rows: int) -> Tensor:
    """Where each tile lies in its image, `(T, 4)` as x0, y0, x1, y1 in 0..1; the thumbnail, if any, last."""
    boxes = [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    if len(boxes) > 1:
        boxes.append((0.0, 0.0, 1.0, 1.0))
    return torch.tensor(boxes)


class MaskEncoder(nn.Module):
    """See the module's docstring. Owns the two delimiters that stand around a region's mask tokens."""

    def __init__(self, config: MaskEncoderConfig) -> None:
        super().__init__()
        self.config = config
        n, d = config.tokens_per_tile, config.hidden_size
        self.conv1 = nn.Conv2d(1, n, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(n, n, 3, stride=2, padding=1)
        if config.kind == "channels":
            features = (config.tile_px // 4) ** 2
            self.activation: nn.Module = nn.ReLU()
        else:
            features = POOLED_GRID**2 + 1
            self.activation = nn.GELU()
            self.token_embedding = nn.Parameter(torch.randn(n, d) * 0.2)
            self.place = nn.Linear(4, d)
            self.norm = nn.RMSNorm(d, eps=1e-6)
            nn.init.constant_(self.norm.weight, config.embedding_norm)
        if config.projection == "linear":
            self.projection: nn.Module = nn.Linear(features, d)
        else:
            self.projection = nn.Sequential(nn.Linear(features, d), nn.GELU(), nn.Linear(d, d))
        self.start = nn.Parameter(torch.randn(d) * config.embedding_norm)
        self.end = nn.Parameter(torch.randn(d) * config.embedding_norm)

    def forward(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """Encode mask tiles.

        Args:
            masks: `(R, T, 1, H, W)` float, 0..1 (1 inside the region), H = W = `tile_px`.
            boxes: `(T, 4)` each tile's place in the image, as `tile_boxes` gives it.

        Returns:
            `(R, T, N, D)` mask tokens, delimiters not included.
        """
        regions, tiles = masks.shape[:2]
        x = masks.flatten(0, 1)
        x = self.activation(self.conv1(x))
        x = self.activation(self.conv2(x))
        if self.config.kind == "channels":
            return self.projection(x.flatten(2)).unflatten(0, (regions, tiles))
        pooled = nn.functional.adaptive_avg_pool2d(x, POOLED_GRID).flatten(2)
        length = pooled.norm(dim=-1, keepdim=True)
        scaled = torch.cat([pooled * (POOLED_GRID / (length + 1e-6)), torch.log(length + 1e-3)], dim=-1)
        tokens = self.projection(scaled).unflatten(0, (regions, tiles))
        tokens = tokens + self.token_embedding + self.place(boxes.to(tokens)).unsqueeze(1)
        return self.norm(tokens)
