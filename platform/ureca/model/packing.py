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

import numpy as np
import torch
from torch import Tensor

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
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
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


def attention_mask(branch: Tensor) -> Tensor:
    """`(B, S)` branch numbers -> `(B, 1, S, S)` bool, True where a query (row) may look at a key (column)."""
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    key, query = branch[:, None, :], branch[:, :, None]
    allowed = causal & ((key == PREFIX) | (key == query))
    # A padding row looks at itself only, so that its softmax stays finite.
    own = torch.eye(length, dtype=torch.bool, device=branch.device)
    return torch.where((query == PADDING), own, allowed & (key != PADDING)).unsqueeze(1)
