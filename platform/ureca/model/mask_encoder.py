"""Masks in, tokens out: `(R, T, 1, H, W)` binary or soft masks -> `(R, T, N, D)` mask tokens.

Two encoders behind one interface, N tokens a tile each:

- `channels`: the architecture of the URECA paper (arXiv 2504.05305, section 4.1 and appendix A). Two 3x3
  convolutions of stride 2 give N channels; every channel's map is flattened and goes through one projection
  shared by all channels. A token is a filter over the whole tile: what it says of a region of ten pixels drowns
  in the rest.
- `tokens` (default): every token points and describes.
    where   each of the N tokens picks a spot of the region (its middle, its leftmost part, ...) among the 32x32
            cells of the tile, and takes up the code of that cell. Codes are learned; where the base has location
            tokens of its own, they start as the embeddings of these, so that the base knows them at once.
    what    the mask cut out at its bounding box and seen at 32x32, so that the outline of a tiny region is as
            sharp as a large one's, with numbers for its box and area.
  The output has the norm of the language model's own embeddings (a learned gain), where the paper's is hundreds of
  times larger at the start.

Shapes: R regions, T tiles (thumbnail last), N tokens a tile, D hidden size of the language model, B = R * T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ureca.errors import ConfigError

GRID = 32
"""Cells along each side of a tile: one for each patch of 14 px that InternVL cuts a tile of 448 px into."""
CUTOUT = 32
"""Side of the cut-out that a region's outline is read from."""
_WAVES = 4


@dataclass(frozen=True, kw_only=True)
class MaskEncoderConfig:
    kind: Literal["tokens", "channels"] = "tokens"
    """`tokens` points and describes; `channels` is the paper's architecture."""
    tokens_per_tile: int = 8
    """N. The paper's stated default is 8; its best table row uses 16."""
    projection: Literal["linear", "mlp"] = "mlp"
    """Of `channels`: `mlp` as in the paper's text (two layers), `linear` as in its code."""
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
        if self.tile_px % GRID:
            raise ConfigError(f"mask encoder tile_px={self.tile_px}: must be a multiple of {GRID} (its grid of cells)")


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
        kinds: dict[str, type[_Channels] | type[_Tokens]] = {"channels": _Channels, "tokens": _Tokens}
        self.body = kinds[config.kind](config)
        self.start = nn.Parameter(torch.randn(config.hidden_size) * config.embedding_norm)
        self.end = nn.Parameter(torch.randn(config.hidden_size) * config.embedding_norm)

    def forward(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """Encode mask tiles.

        Args:
            masks: `(R, T, 1, H, W)` float, 0..1 (1 inside the region), H = W = `tile_px`.
            boxes: `(T, 4)` each tile's place in the image, as `tile_boxes` gives it.

        Returns:
            `(R, T, N, D)` mask tokens, delimiters not included.
        """
        regions, tiles = masks.shape[:2]
        tokens: Tensor = self.body(masks.flatten(0, 1), boxes.repeat(regions, 1))
        return tokens.unflatten(0, (regions, tiles))

    @torch.no_grad()
    def use_location_embeddings(self, embeddings: Tensor) -> None:
        """Start the cells' codes from the base's location tokens, `(GRID * GRID, D)` row by row."""
        if isinstance(self.body, _Tokens):
            self.body.codes.copy_(embeddings / embeddings.square().mean().sqrt())


class _Channels(nn.Module):
    def __init__(self, config: MaskEncoderConfig) -> None:
        super().__init__()
        n, d = config.tokens_per_tile, config.hidden_size
        self.conv1 = nn.Conv2d(1, n, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(n, n, 3, stride=2, padding=1)
        features = (config.tile_px // 4) ** 2
        if config.projection == "linear":
            self.projection: nn.Module = nn.Linear(features, d)
        else:
            self.projection = nn.Sequential(nn.Linear(features, d), nn.GELU(), nn.Linear(d, d))

    def forward(self, masks: Tensor, boxes: Tensor) -> Tensor:  # noqa: ARG002 (one interface)
        """`(B, 1, H, W)` -> `(B, N, D)`; the tile's place is not told apart."""
        x = torch.relu(self.conv1(masks))
        x = torch.relu(self.conv2(x))
        out: Tensor = self.projection(x.flatten(2))
        return out


class _Tokens(nn.Module):
    def __init__(self, config: MaskEncoderConfig) -> None:
        super().__init__()
        n, d = config.tokens_per_tile, config.hidden_size
        self.codes = nn.Parameter(_wave_codes(d))
        self.spots = nn.Parameter(_spread_spots(n))
        self.coverage_weight = nn.Parameter(torch.full((n,), 2.0))

        outline, width = 128, min(d, 1024)
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.outline = nn.Linear(32 * (CUTOUT // 4) ** 2, outline)
        numbers = 5 * 2 * _WAVES + 5
        self.token_embedding = nn.Parameter(torch.randn(n, 64) * 0.2)
        self.describe = nn.Sequential(nn.Linear(outline + numbers + 64, width), nn.GELU(), nn.Linear(width, d))
        self.place = nn.Linear(4, d)
        self.norm = nn.RMSNorm(d, eps=1e-6)
        nn.init.constant_(self.norm.weight, config.embedding_norm)
        # At the start the pointer is heard before anything else.
        nn.init.normal_(self.place.weight, std=0.1)
        nn.init.zeros_(self.place.bias)

    def forward(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """`(B, 1, H, W)` and each tile's box `(B, 4)` -> `(B, N, D)`."""
        where = self._pick(masks) @ self.codes
        what = self.describe(self._looks(masks))
        return self.norm(where + what + self.place(boxes.to(where)).unsqueeze(1))

    def _pick(self, masks: Tensor) -> Tensor:
        """`(B, N, GRID * GRID)`: how much each token looks at each cell; cells outside the region get nothing."""
        covered = nn.functional.adaptive_avg_pool2d(masks, GRID).flatten(1)
        at = _cell_centers(masks)
        weight = covered / covered.sum(1, keepdim=True).clamp_min(1e-6)
        middle = weight @ at
        offset = at - middle[:, None]
        spread = (weight[..., None] * offset.square()).sum((1, 2)).add(1 / GRID**2).sqrt()
        offset = offset / spread[:, None, None]
        terms = torch.cat([offset, offset.square().sum(-1, keepdim=True)], dim=-1)
        scores = torch.einsum("bct,nt->bnc", terms, self.spots)
        scores = scores + self.coverage_weight[:, None] * torch.log(covered + 1e-4)[:, None]
        return scores.softmax(-1)

    def _looks(self, masks: Tensor) -> Tensor:
        """`(B, N, F)`: outline and box of the region, and which token this is."""
        box = _bounding_boxes(masks)
        x = nn.functional.gelu(self.conv1(_cut_out(masks, box)))
        x = nn.functional.gelu(self.conv2(x))
        area = masks.flatten(1).mean(1, keepdim=True).clamp_min(1e-6)
        sides = box[:, 2:] - box[:, :2]
        values = torch.cat([(box[:, :2] + box[:, 2:]) / 2, sides.log2() / 8, area.log2() / 16], dim=1)
        waves = values[..., None] * (2.0 ** torch.arange(_WAVES, device=masks.device)) * math.pi
        numbers = torch.cat([values, waves.sin().flatten(1), waves.cos().flatten(1)], dim=1)
        looks = torch.cat([self.outline(x.flatten(1)), numbers.to(x)], dim=1)
        n = len(self.token_embedding)
        tokens = self.token_embedding.expand(len(masks), -1, -1)
        return torch.cat([looks[:, None].expand(-1, n, -1), tokens], dim=-1)


def _wave_codes(width: int) -> Tensor:
    """`(GRID * GRID, width)`: sines of row and column, unlike for every cell and alike for neighbors; unit scale."""
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, width, generator=generator) * 2.5
    phases = torch.rand(width, generator=generator) * 2 * math.pi
    cells = torch.stack([x.flatten(), y.flatten()], dim=1) / GRID
    return torch.sin(cells @ directions * math.pi + phases) * math.sqrt(2)


def _spread_spots(n: int) -> Tensor:
    """`(N, 3)`: what each token looks for: a direction from the middle (x, y), and how far out it likes to be.

    The first quarter looks at the middle, the others around it.
    """
    central = max(1, n // 4)
    around = torch.arange(n - central) / max(1, n - central) * 2 * math.pi
    spots = torch.zeros(n, 3)
    spots[:central, 2] = -2.0
    spots[central:, 0], spots[central:, 1] = 3 * around.cos(), 3 * around.sin()
    return spots


def _cell_centers(masks: Tensor) -> Tensor:
    """`(GRID * GRID, 2)` as x, y in 0..1, in the type and on the device of `masks`."""
    line = (torch.arange(GRID, device=masks.device, dtype=masks.dtype) + 0.5) / GRID
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _bounding_boxes(masks: Tensor) -> Tensor:
    """`(B, 1, H, W)` -> `(B, 4)` x0, y0, x1, y1 in 0..1 of what is above a half, else of all that is not 0."""
    ends = []
    for dim in (2, 1):  # columns, then rows
        line = masks[:, 0].amax(3 - dim)
        inside = torch.where(line.amax(1, keepdim=True) > 0.5, line > 0.5, line > 0)
        inside = inside | ~inside.any(1, keepdim=True)  # an empty tile: all of it
        size = line.shape[1]
        first = inside.int().argmax(1)
        last = size - inside.flip(1).int().argmax(1)
        ends.append((first / size, last / size))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], dim=1).to(masks.dtype)


def _cut_out(masks: Tensor, box: Tensor) -> Tensor:
    """`(B, 1, CUTOUT, CUTOUT)`: each mask at its bounding box, seen twice as fine and averaged."""
    center, half = box[:, :2] + box[:, 2:] - 1, box[:, 2:] - box[:, :2]
    theta = torch.zeros(len(masks), 2, 3, device=masks.device, dtype=masks.dtype)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = half[:, 0], half[:, 1], center
    size = [len(masks), 1, 2 * CUTOUT, 2 * CUTOUT]
    grid = nn.functional.affine_grid(theta, size, align_corners=False)
    return nn.functional.avg_pool2d(nn.functional.grid_sample(masks, grid, align_corners=False), 2)
