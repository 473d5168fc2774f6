"""Pack all regions of an image behind one image prefix.

    tokens        [ image ........ | mask query caption | mask query caption ]
    branch        [ -1 ........ -1 |  0 ...           0 |  1 ...           1 ]
    position_ids  [  0 ....... P-1 |  P ...             |  P ...             ]

A token sees the prefix and, causally, its own branch: loss and gradients equal those of R separate sequences
(tests/model/test_packing.py). Rows of a batch are padded on the right with branch -2.

Shapes: B rows (one per image), S tokens a row, T tiles, M mask tokens, D hidden.
Source: the sequence, URECA (arXiv 2504.05305) section 4; the packing is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ureca.model.processor import CaptionerProcessor
from ureca.regions.rle import Rle

PREFIX, PADDING = -1, -2
IGNORED = -100


@dataclass(frozen=True)
class RegionExample:
    segmentation: Rle | None
    """COCO RLE of the region; None leaves out the mask tokens (the control without a region cue)."""
    query: str
    caption: str


@dataclass(frozen=True)
class Example:
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    regions: tuple[RegionExample, ...]


@dataclass(frozen=True)
class PackedBatch:
    """Everything a training step needs, on one device."""

    input_ids: Tensor
    """(B, S) int64; mask positions hold the padding id and are overwritten by mask tokens."""
    position_ids: Tensor
    """(B, S) int64."""
    branch: Tensor
    """(B, S) int64: -1 prefix, -2 padding, else the region's number in its row."""
    labels: Tensor
    """(B, S) int64: the token that position s must predict, -100 where the loss does not look."""
    is_mask: Tensor
    """(B, S) bool: where mask tokens (delimiters included) go, in order of appearance."""
    pixel_values: Tensor
    """(sum of T, 3, tile, tile) float32."""
    mask_tiles: tuple[Tensor, ...]
    """One (T, 1, tile, tile) for each region with a mask, in order of appearance."""
    grids: tuple[tuple[int, int], ...]
    """(columns, rows) for each entry of `mask_tiles`."""

    @property
    def num_regions(self) -> int:
        return int((self.branch.max(dim=1).values + 1).sum())

    def to(self, device: torch.device | str) -> PackedBatch:
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors, mask_tiles=tuple(tile.to(device) for tile in self.mask_tiles))


def kept_tiles(tiles: Tensor, *, drop_empty: bool) -> Tensor:
    """(T,) bool: tiles whose tokens stand in the sequence. The last one (thumbnail or only tile) always does."""
    kept = torch.ones(len(tiles), dtype=torch.bool)
    if drop_empty:
        kept[:-1] = tiles[:-1].flatten(1).any(dim=1)
    return kept


def pack(
    examples: Sequence[Example],
    processor: CaptionerProcessor,
    *,
    tokens_per_tile: int,
    drop_empty: bool,
    pixel_values: Sequence[Tensor] | None = None,
) -> PackedBatch:
    """Pack each example into one row.

    Args:
        tokens_per_tile: N of the mask encoder; a region's mask takes N * (kept tiles) + 2 positions.
        drop_empty: leave out tiles that the region does not touch (the `tokens` encoder does).
        pixel_values: the images' tiles where the caller has them already, else they are made here.
    """
    rows = []
    pixels: list[Tensor] = []
    tiles: list[Tensor] = []
    grids: list[tuple[int, int]] = []
    for number, example in enumerate(examples):
        values = processor.image_inputs(example.image) if pixel_values is None else pixel_values[number]
        pixels.append(values)
        ids = processor.prefix_ids(len(values))
        prefix = len(ids)
        branch, positions = [PREFIX] * prefix, list(range(prefix))
        labels, is_mask = [IGNORED] * prefix, [False] * prefix
        for index, region in enumerate(example.regions):
            num_mask = 0
            if region.segmentation is not None:
                region_tiles = processor.mask_tiles(region.segmentation)
                tiles.append(region_tiles)
                height, width = region.segmentation["size"]
                grids.append(processor.grid((height, width)))
                num_mask = 2 + tokens_per_tile * int(kept_tiles(region_tiles, drop_empty=drop_empty).sum())
            query, caption = processor.branch_ids(region.query), processor.caption_ids(region.caption)
            branch_ids = [0] * num_mask + query + caption
            ids += branch_ids
            is_mask += [True] * num_mask + [False] * (len(query) + len(caption))
            # Position s predicts token s + 1: the query's last token predicts the caption's first.
            labels += [IGNORED] * (num_mask + len(query) - 1) + caption + [IGNORED]
            branch += [index] * len(branch_ids)
            positions += range(prefix, prefix + len(branch_ids))
        rows.append((ids, positions, branch, labels, is_mask))
    length = max(len(row[0]) for row in rows)
    padding = (0, 0, PADDING, IGNORED, False)
    columns = [
        torch.tensor([row[field] + [fill] * (length - len(row[field])) for row in rows])
        for field, fill in enumerate(padding)
    ]
    return PackedBatch(
        input_ids=columns[0],
        position_ids=columns[1],
        branch=columns[2],
        labels=columns[3],
        is_mask=columns[4],
        pixel_values=torch.cat(pixels),
        mask_tiles=tuple(tiles),
        grids=tuple(grids),
    )


@dataclass(frozen=True)
class BranchLayout:
    """Where the branches of a packed batch lie; what `attend` needs instead of a dense (S, S) mask.

    R branches in the row that has most, L tokens in the longest branch, P in the longest prefix.
    """

    index: Tensor
    """(B, R, L) int64: each branch's tokens as positions in the flattened (B * S) batch, padded with 0."""
    valid: Tensor
    """(B, R, L) bool: which entries of `index` are no padding."""
    prefix_valid: Tensor
    """(B, P) bool."""

    @classmethod
    def of(cls, branch: Tensor) -> BranchLayout:
        """From the branch numbers `(B, S)` of a packed batch."""
        rows, length = branch.shape
        positions = [
            [(numbers == number).nonzero()[:, 0] + row * length for number in range(int(numbers.max()) + 1)]
            for row, numbers in enumerate(branch)
        ]
        most = max(len(row) for row in positions)
        longest = max(len(branch) for row in positions for branch in row)
        index = branch.new_zeros(rows, most, longest)
        valid = torch.zeros(rows, most, longest, dtype=torch.bool, device=branch.device)
        for row, branches in enumerate(positions):
            for number, tokens in enumerate(branches):
                index[row, number, : len(tokens)] = tokens
                valid[row, number, : len(tokens)] = True
        prefix_lengths = (branch == PREFIX).sum(dim=1)
        prefix = torch.arange(int(prefix_lengths.max()), device=branch.device)
        return cls(index, valid, prefix < prefix_lengths[:, None])


def attend(query: Tensor, key: Tensor, value: Tensor, layout: BranchLayout, scale: float) -> Tensor:
    """Attention of a packed batch, `(B, H, S, D)` each: prefixes causally, every branch behind its prefix.

    The same numbers as one dense masked attention over S without its S x S work: a row of P prefix tokens and R
    branches of L tokens costs P * P + R * L * (P + L), and its keys are not copied for each branch. Written out in
    matrix products since on a CPU, where nano trains, the fused kernel's gradient takes twice as long.
    """
    heads, length, width = query.shape[1:]
    rows, most, longest = layout.index.shape
    prefix = layout.prefix_valid.shape[1]
    positions = layout.index.flatten()
    query = query * scale

    def causal(size: int) -> Tensor:
        return torch.ones(size, size, dtype=torch.bool, device=query.device).triu(1)

    def branches(x: Tensor) -> Tensor:
        # index_select: on a CPU its gradient is many times faster than that of x[index].
        tokens = x.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, positions)
        return tokens.view(rows, most, longest, heads, width).permute(0, 3, 1, 2, 4)

    prefix_key, prefix_value = key[:, :, :prefix], value[:, :, :prefix]
    scores = (query[:, :, :prefix] @ prefix_key.mT).masked_fill(causal(prefix), float("-inf"))
    first = scores.softmax(-1) @ prefix_value

    q, k, v = branches(query), branches(key), branches(value)
    to_prefix = (q.flatten(2, 3) @ prefix_key.mT).masked_fill(~layout.prefix_valid[:, None, None], float("-inf"))
    to_itself = (q @ k.mT).masked_fill(causal(longest), float("-inf"))
    weights = torch.cat([to_prefix.unflatten(2, (most, longest)), to_itself], dim=-1).softmax(-1)
    found = (weights[..., :prefix].flatten(2, 3) @ prefix_value).unflatten(2, (most, longest))
    found = found + weights[..., prefix:] @ v

    # Under autocast the result's type is the products' own, not the queries'.
    out = torch.cat([first, first.new_zeros(rows, heads, length - prefix, width)], dim=2)
    flat = out.transpose(1, 2).flatten(2).flatten(0, 1)
    flat = flat.index_copy(0, layout.index[layout.valid], found.permute(0, 2, 3, 1, 4).flatten(3)[layout.valid])
    return flat.view(rows, length, heads, width).transpose(1, 2)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attend` in the form of transformers' attention interface; anything but a BranchLayout goes to its SDPA."""
    if not isinstance(attention_mask, BranchLayout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = attend(query, key, value, attention_mask, scaling if scaling is not None else query.shape[-1] ** -0.5)
    return out.transpose(1, 2).contiguous(), None


PACKED_ATTENTION = "ureca_packed"
ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, sdpa_mask)
