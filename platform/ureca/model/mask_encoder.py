"""Mask encoder: a region's mask tiles -> its rows `[start, N tokens per tile, end]`, `(M, D)`.

Two encoders behind one interface, N tokens per tile each:

- `channels`: the encoder of the paper's authors (arXiv 2504.05305, section 4.1 and appendix A; architecture,
  initialization and input values as in their code). Two 3x3 convolutions of stride 2 give N channels; each channel's
  map is flattened and projected by one shared projection. A token is a filter over the entire tile, so a region of ten
  pixels is drowned out by the rest. Empty tiles have tokens too, the same for all of them.
- `tokens` (default): every token points and describes. Empty tiles have no tokens.
    where   each of the N tokens picks a spot of the region (its middle, its leftmost part, ...) among the tile's 32x32
            cells, and receives that cell's code. Codes are learned; if the base has location tokens, codes start as
            their embeddings, so the base understands them at once.
    what    the mask cropped to its bounding box and resized to 32x32, so that the outline of a tiny region is as
            sharp as a large one's, plus numbers for its box and area.
  The output has the norm of the language model's embeddings (a learned gain); the paper's is hundreds of times larger
  at initialization.

Shapes: R regions, T tiles of an image (thumbnail last), K tiles that a region touches, N tokens per tile, D hidden size
of the language model, B tiles of all regions, M rows of a region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ureca.errors import ConfigError
from ureca.regions.tiles import with_thumbnail

GRID = 32
"""Cells along each side of a tile: one per 14 px patch of InternVL's 448 px tile."""
CUTOUT = 32
"""Side of the crop that a region's outline is read from."""
_SMALL = {"codes": 0.02, "describe": 0.3, "place": 0.1}
"""Initial scale of the summands of `tokens`, relative to the usual one. At the usual scale a short training did not
learn to read codes that the base does not know (docs/mask_encoder.md)."""
TILES_AT_ONCE = (8, 64)
"""Tiles per forward of the encoder: on CPUs, whose caches they must fit, and on other devices."""


@dataclass(frozen=True, kw_only=True)
class MaskEncoderConfig:
    kind: Literal["tokens", "channels"] = "tokens"
    """`tokens` points and describes; `channels` is the paper's architecture."""
    tokens_per_tile: int = 8
    """N. The paper's stated default is 8; its best table row uses 16."""
    projection: Literal["linear", "mlp"] = "linear"
    """Projection of `channels`: `linear` as in the authors' code, `mlp` as in the paper's text (two layers)."""
    input_scale: float = 255.0
    """Input value inside the region, `channels` only. The authors' code uses 0 and 255."""
    tile_px: int = 448
    """Side of a tile in pixels; must equal the base's tile size."""
    hidden_size: int = 4096
    """D, the language model's embedding width."""
    embedding_norm: float = 1.0
    """Root mean square of the base's text embeddings: initial gain of `tokens`."""
    only_inside: bool = True
    """Restrict tokens to cells of their region, `tokens` only. If false, tokens of regions below about six cells point
    far outside."""
    waves: int = 8
    """Sines per number for box and area, each of twice the previous frequency, `tokens` only. The finest of 8 resolves
    neighboring pixels of a tile, of 4 pixels 16 apart."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> MaskEncoderConfig:
        """Create from JSON. Missing newer settings mean a model trained before they existed."""
        return cls(**{"input_scale": 1.0, "only_inside": False, "waves": 4, **record})

    def __post_init__(self) -> None:
        if self.kind not in ("tokens", "channels"):
            raise ConfigError(f"mask encoder kind={self.kind!r}: use 'tokens' or 'channels'")
        if self.projection not in ("linear", "mlp"):
            raise ConfigError(f"mask encoder projection={self.projection!r}: use 'linear' or 'mlp'")
        if self.tokens_per_tile < 1:
            raise ConfigError(f"mask encoder tokens_per_tile={self.tokens_per_tile}: must be at least 1")
        if self.waves < 1:
            raise ConfigError(f"mask encoder waves={self.waves}: must be at least 1")
        if not (self.input_scale > 0 and math.isfinite(self.input_scale)):
            raise ConfigError(f"mask encoder input_scale={self.input_scale}: must be a number above 0")
        if self.tile_px % GRID:
            raise ConfigError(f"mask encoder tile_px={self.tile_px}: must be a multiple of {GRID} (its grid of cells)")


def tile_boxes(columns: int, rows: int) -> Tensor:
    """Return the box of each tile in its image, `(T, 4)` as x0, y0, x1, y1 in 0..1; a thumbnail is last."""
    boxes = [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    if len(boxes) > 1:
        boxes.append((0.0, 0.0, 1.0, 1.0))
    return torch.tensor(boxes)


@dataclass(frozen=True)
class MaskTiles:
    """One region's mask, cut by `ureca.regions.tiles.mask_tiles`."""

    values: Tensor
    """`(K, 1, tile_px, tile_px)` float32 in 0..1: the tiles that the region touches, and always the last one."""
    places: Tensor
    """`(K,)` int64: their indices among the image's tiles."""
    grid: tuple[int, int]
    """(columns, rows) of the image's tiles, thumbnail not counted."""

    @property
    def num_tiles(self) -> int:
        """T, thumbnail included."""
        columns, rows = self.grid
        return with_thumbnail(columns * rows)

    def to(self, device: torch.device | str) -> MaskTiles:
        return MaskTiles(self.values.to(device), self.places.to(device), self.grid)


def rows_of_mask(mask: MaskTiles, tokens_per_tile: int, *, drop_empty: bool) -> int:
    """Return M: a region's mask rows in the sequence, delimiters included."""
    return 2 + tokens_per_tile * (len(mask.values) if drop_empty else mask.num_tiles)


class MaskEncoder(nn.Module):
    """Mask encoder with the two delimiters around a region's mask tokens."""

    def __init__(self, config: MaskEncoderConfig) -> None:
        super().__init__()
        self.config = config
        kinds: dict[str, type[_Channels] | type[_Tokens]] = {"channels": _Channels, "tokens": _Tokens}
        self.body = kinds[config.kind](config)
        self.start = nn.Parameter(torch.randn(config.hidden_size) * config.embedding_norm)
        self.end = nn.Parameter(torch.randn(config.hidden_size) * config.embedding_norm)

    def __call__(self, masks: Sequence[MaskTiles]) -> list[Tensor]:
        """Encode regions of one or several images.

        Returns:
            Rows `(M, D)` of each region: start, N tokens per tile in tile order, end.
        """
        if not masks:
            return []
        # Split into regions only here: DeepSpeed ZeRO 3 counts the tensors that a module returns, and a worker with
        # more regions would appear to call more modules.
        rows: Tensor = super().__call__(masks)
        drop_empty = isinstance(self.body, _Tokens)
        n = self.config.tokens_per_tile
        return list(rows.split([rows_of_mask(mask, n, drop_empty=drop_empty) for mask in masks]))

    def forward(self, masks: Sequence[MaskTiles]) -> Tensor:
        """Return the rows of all regions, concatenated: `(sum of M, D)`."""
        device = self.start.device
        values = [mask.values for mask in masks]
        boxes = [tile_boxes(*mask.grid)[mask.places.cpu()].to(device) for mask in masks]
        needs_empty = isinstance(self.body, _Channels) and any(len(mask.values) < mask.num_tiles for mask in masks)
        if needs_empty:  # an empty tile has the same tokens everywhere: encode one for all regions
            values.append(torch.zeros_like(values[0][:1]))
            boxes.append(boxes[0][:1])
        # Under DeepSpeed ZeRO 3 (which marks its parameters) workers gather weights in every call, so all must make the
        # same number of calls regardless of their tiles.
        at_once = sum(map(len, values)) if hasattr(self.start, "ds_id") else TILES_AT_ONCE[device.type != "cpu"]
        tokens: list[Tensor] = []  # (K, N, D) of each region
        for part in _portions(list(map(len, values)), at_once):
            encoded: Tensor = self.body(torch.cat([each.to(device) for each in values[part]]), torch.cat(boxes[part]))
            tokens += encoded.split(list(map(len, values[part])))
        if needs_empty:
            empty = tokens.pop()
            tokens = [_filled(own, mask, empty) for own, mask in zip(tokens, masks, strict=True)]
        ends = self.start.to(tokens[0])[None], self.end.to(tokens[0])[None]
        return torch.cat([piece for own in tokens for piece in (ends[0], own.flatten(0, 1), ends[1])])

    @torch.no_grad()
    def use_location_embeddings(self, embeddings: Tensor) -> None:
        """Initialize the cell codes from the base's location tokens, `(GRID * GRID, D)` row by row, at full scale: the
        base can read them from the first step."""
        if isinstance(self.body, _Tokens):
            self.body.codes.copy_(embeddings / embeddings.square().mean().sqrt())
            self.body.scale_descriptions(1 / _SMALL["describe"], 1 / _SMALL["place"])


def _portions(lengths: Sequence[int], limit: int) -> list[slice]:
    """Return slices of neighbors whose lengths sum to at most `limit`, or single longer ones."""
    portions, first, total = [], 0, 0
    for number, length in enumerate(lengths):
        if number > first and total + length > limit:
            portions.append(slice(first, number))
            first, total = number, 0
        total += length
    return [*portions, slice(first, len(lengths))] if lengths else []


def _filled(tokens: Tensor, mask: MaskTiles, empty: Tensor) -> Tensor:
    """Insert the empty tile's tokens `(1, N, D)` where the region touches none: `(K, N, D)` -> `(T, N, D)`."""
    index = torch.full((mask.num_tiles,), len(tokens), device=tokens.device)
    index[mask.places.to(tokens.device)] = torch.arange(len(tokens), device=tokens.device)
    return torch.cat([tokens, empty])[index]


class _Channels(nn.Module):
    def __init__(self, config: MaskEncoderConfig) -> None:
        super().__init__()
        n, d = config.tokens_per_tile, config.hidden_size
        self.scale = config.input_scale
        self.conv1 = nn.Conv2d(1, n, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(n, n, 3, stride=2, padding=1)
        features = (config.tile_px // 4) ** 2
        if config.projection == "linear":
            self.projection: nn.Module = nn.Linear(features, d)
        else:
            self.projection = nn.Sequential(nn.Linear(features, d), nn.GELU(), nn.Linear(d, d))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # The authors' initialization counts output channels, not the kernel's area.
                fan_in, fan_out = module.weight[0].numel(), len(module.weight)
                nn.init.normal_(module.weight, std=math.sqrt(2 / (fan_in + fan_out)))
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, masks: Tensor, boxes: Tensor) -> Tensor:  # noqa: ARG002 (one interface)
        """Encode `(B, 1, H, W)` to `(B, N, D)`; the tile's position is ignored."""
        x = self.conv1((masks * self.scale).to(self.conv1.weight.dtype)).relu_()
        x = self.conv2(x).relu_()
        out: Tensor = self.projection(x.flatten(2))
        return out


class _Tokens(nn.Module):
    def __init__(self, config: MaskEncoderConfig) -> None:
        super().__init__()
        n, d = config.tokens_per_tile, config.hidden_size
        self.codes = nn.Parameter(_wave_codes(d) * _SMALL["codes"])
        self.spots = nn.Parameter(_spread_spots(n))
        self.coverage_weight = nn.Parameter(torch.full((n,), 2.0))

        outline, width = 128, min(d, 1024)
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.outline = nn.Linear(32 * (CUTOUT // 4) ** 2, outline)
        self.only_inside, self.waves = config.only_inside, config.waves
        numbers = 5 * 2 * config.waves + 5
        self.token_embedding = nn.Parameter(torch.randn(n, 64) * 0.2)
        self.describe = nn.Sequential(nn.Linear(outline + numbers + 64, width), nn.GELU(), nn.Linear(width, d))
        self.place = nn.Linear(4, d)
        self.norm = nn.RMSNorm(d, eps=1e-6)
        nn.init.constant_(self.norm.weight, config.embedding_norm)
        # Small, because a norm follows: a step then changes a large part of them, and they turn quickly.
        nn.init.normal_(self.place.weight, std=0.1)
        self.scale_descriptions(_SMALL["describe"], _SMALL["place"])
        nn.init.zeros_(self.place.bias)

    @torch.no_grad()
    def scale_descriptions(self, describe: float, place: float) -> None:
        """Scale the weights of the summands that are added to the codes."""
        last = self.describe[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(describe)
        self.place.weight.mul_(place)

    def forward(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """Encode `(B, 1, H, W)` and each tile's box `(B, 4)` to `(B, N, D)`."""
        # Measure in the mask's own dtype: bfloat16 can't locate a small region.
        masks = masks.to(torch.promote_types(masks.dtype, self.codes.dtype))
        with _without_autocast(masks.device.type):
            picked, cutouts, numbers = self._pick(masks), *self._measure(masks)
        where = picked.to(self.codes.dtype) @ self.codes
        what = self.describe(self._looks(cutouts, numbers))
        return self.norm(where + what + self.place(boxes.to(self.place.weight.dtype)).unsqueeze(1))

    def _pick(self, masks: Tensor) -> Tensor:
        """Return each token's attention to each cell, `(B, N, GRID * GRID)`; cells outside the region get none."""
        covered = nn.functional.adaptive_avg_pool2d(masks, GRID).flatten(1)
        at = _cell_centers(masks)
        weight = covered / covered.sum(1, keepdim=True).clamp_min(1e-6)
        middle = weight @ at
        offset = at - middle[:, None]
        spread = (weight[..., None] * offset.square()).sum((1, 2)).add(1 / GRID**2).sqrt()
        offset = offset / spread[:, None, None]
        terms = torch.cat([offset, offset.square().sum(-1, keepdim=True)], dim=-1)
        scores = torch.einsum("bct,nt->bnc", terms, self.spots.to(terms))
        coverage_weight = self.coverage_weight.to(terms)[:, None]
        if not self.only_inside:
            return (scores + coverage_weight * torch.log(covered + 1e-4)[:, None]).softmax(-1)
        most = covered.amax(1, keepdim=True)
        outside = (covered == 0) & (most > 0)  # all cells of an empty tile are alike
        share = covered / most.clamp_min(1e-12)
        scores = scores + coverage_weight * torch.log(share + 1e-4)[:, None]
        return scores.masked_fill(outside[:, None], float("-inf")).softmax(-1)

    def _measure(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask at its bounding box, `(B, 1, CUTOUT, CUTOUT)`, and numbers for box and area, `(B, F)`."""
        box = _bounding_boxes(masks)
        area = masks.flatten(1).mean(1, keepdim=True).clamp_min(1e-6)
        sides = box[:, 2:] - box[:, :2]
        values = torch.cat([(box[:, :2] + box[:, 2:]) / 2, sides.log2() / 8, area.log2() / 16], dim=1)
        waves = values[..., None] * (2.0 ** torch.arange(self.waves, device=masks.device)) * math.pi
        return _cut_out(masks, box), torch.cat([values, waves.sin().flatten(1), waves.cos().flatten(1)], dim=1)

    def _looks(self, cutouts: Tensor, numbers: Tensor) -> Tensor:
        """Return outline, box and token identity as features, `(B, N, F)`."""
        x = nn.functional.gelu(self.conv1(cutouts.to(self.conv1.weight.dtype)))
        x = nn.functional.gelu(self.conv2(x))
        outline = self.outline(x.flatten(1))
        looks = torch.cat([outline, numbers.to(outline)], dim=1)
        n = len(self.token_embedding)
        tokens = self.token_embedding.to(looks).expand(len(looks), -1, -1)
        return torch.cat([looks[:, None].expand(-1, n, -1), tokens], dim=-1)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    known = torch.amp.is_autocast_available(device_type)  # not on "meta", where FLOPs are counted
    return torch.autocast(device_type, enabled=False) if known else nullcontext()


def _wave_codes(width: int) -> Tensor:
    """Return `(GRID * GRID, width)` sines of row and column: distinct per cell, similar for neighbors, unit scale."""
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, width, generator=generator) * 2.5
    phases = torch.rand(width, generator=generator) * 2 * math.pi
    cells = torch.stack([x.flatten(), y.flatten()], dim=1) / GRID
    return torch.sin(cells @ directions * math.pi + phases) * math.sqrt(2)


def _spread_spots(n: int) -> Tensor:
    """Return `(N, 3)` targets of the tokens: direction from the middle (x, y), and preferred distance.

    The first quarter targets the middle, the others the surroundings.
    """
    central = max(1, n // 4)
    around = torch.arange(n - central) / max(1, n - central) * 2 * math.pi
    spots = torch.zeros(n, 3)
    spots[:central, 2] = -2.0
    spots[central:, 0], spots[central:, 1] = 3 * around.cos(), 3 * around.sin()
    return spots


def _cell_centers(masks: Tensor) -> Tensor:
    """Return `(GRID * GRID, 2)` cell centers as x, y in 0..1, in the dtype and on the device of `masks`."""
    line = (torch.arange(GRID, device=masks.device, dtype=masks.dtype) + 0.5) / GRID
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _bounding_boxes(masks: Tensor) -> Tensor:
    """Return bounding boxes `(B, 4)`, x0, y0, x1, y1 in 0..1, of values above 0.5, or else of nonzero values."""
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
    """Crop each mask to its bounding box: `(B, 1, CUTOUT, CUTOUT)`, sampled at twice the resolution and averaged."""
    center, half = box[:, :2] + box[:, 2:] - 1, box[:, 2:] - box[:, :2]
    theta = torch.zeros(len(masks), 2, 3, device=masks.device, dtype=masks.dtype)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = half[:, 0], half[:, 1], center
    size = [len(masks), 1, 2 * CUTOUT, 2 * CUTOUT]
    grid = nn.functional.affine_grid(theta, size, align_corners=False)
    return nn.functional.avg_pool2d(nn.functional.grid_sample(masks, grid, align_corners=False), 2)
