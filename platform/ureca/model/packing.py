"""Pack all regions of an image behind one image prefix.

    prefix_ids     (P,)  [ image ........ | image ... | ... ]                    one per image, end to end
    input_ids      (S,)  [ mask query caption | mask query caption | ... ]       one per region, end to end
    position_ids         [ p ...              | p ...              | ... ]       p: length of the image prefix

A branch token sees its image's prefix and, causally, its own branch: loss and gradients equal those of R separate
sequences (tests/model/test_packing.py). Nothing is padded, however different images and captions are in length.

The language model runs twice with the same weights: over the prefixes, where each layer's keys and values are kept,
then over the branches, which attend to these (`ureca.model.attention`). If nothing before the keys and values trains,
the first run needs no gradient.

Shapes: P tokens of all prefixes, S of all branches, R regions, T tiles, D hidden. Source: the sequence, URECA (arXiv
2504.05305) section 4; the packing is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ureca.model.attention import Layout
from ureca.model.flops import Branch, Counts, packed_counts
from ureca.model.mask_encoder import MaskTiles, rows_of_mask
from ureca.model.processor import CaptionerProcessor
from ureca.regions.rle import Rle

IGNORED = -100


@dataclass(frozen=True)
class RegionExample:
    segmentation: Rle | None
    """COCO RLE of the region; None omits the mask tokens (the control without a region cue)."""
    query: str
    caption: str


@dataclass(frozen=True)
class Example:
    image: np.ndarray | Tensor
    """(H, W, 3) uint8 RGB; or its image tokens (T, 256, D), if already computed."""
    regions: tuple[RegionExample, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    """For preference tuning: (chosen, rejected), indices in `regions` of two captions of one region."""


@dataclass(frozen=True)
class PackedBatch:
    """All inputs of a training step, on one device."""

    prefix_ids: Tensor
    """(P,) int64."""
    prefix_positions: Tensor
    """(P,) int64: from 0 in each image."""
    input_ids: Tensor
    """(S,) int64; mask positions hold the padding id and are replaced by mask tokens."""
    position_ids: Tensor
    """(S,) int64."""
    branch: Tensor
    """(S,) int64: branch index, counted over all images in the order of the examples."""
    labels: Tensor
    """(S,) int64: the token to predict at each position, -100 without loss."""
    is_mask: Tensor
    """(S,) bool: positions of mask tokens (delimiters included), in order of appearance."""
    layout: Layout
    """Lengths of prefixes and branches."""
    pixel_values: Tensor | None
    """(sum of T, 3, tile, tile) float32; None if the examples have image tokens."""
    image_features: Tensor | None
    """(sum of T, 256, D) image tokens, if the examples have them."""
    mask_tiles: tuple[MaskTiles, ...]
    """One per region with a mask, in order of appearance."""
    num_regions: int
    """Branches: a region with several captions counts once per caption."""
    pairs: Tensor
    """(K, 2) int64: chosen and rejected branch of each pair, numbered like `branch`."""
    counts: Counts
    """Tiles, tokens and query-key pairs, for `ureca.model.flops`."""

    def to(self, device: torch.device | str) -> PackedBatch:
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors, mask_tiles=tuple(tile.to(device) for tile in self.mask_tiles))


@dataclass(frozen=True)
class _Branch:
    ids: list[int]
    num_mask: int
    caption: list[int]
    tiles: MaskTiles | None


def pack(
    examples: Sequence[Example], processor: CaptionerProcessor, *, tokens_per_tile: int, drop_empty: bool
) -> PackedBatch:
    """Pack examples into one batch.

    Args:
        examples: either all with pixels or all with image tokens.
        tokens_per_tile: N of the mask encoder; a region's mask takes N * (kept tiles) + 2 positions.
        drop_empty: omit tiles that the region does not touch (encoder `tokens`).
    """
    features = [example.image for example in examples if isinstance(example.image, Tensor)]
    pixels = [processor.image_inputs(e.image) for e in examples if not isinstance(e.image, Tensor)]
    assert not (features and pixels), "pixels and image tokens in one batch"
    prefixes = [processor.prefix_ids(len(values)) for values in features or pixels]
    images = [
        [_branch(region, processor, tokens_per_tile=tokens_per_tile, drop_empty=drop_empty) for region in e.regions]
        for e in examples
    ]
    branches = [branch for of_image in images for branch in of_image]
    lengths = [len(branch.ids) for branch in branches]
    first_positions = [len(prefix) for prefix, of_image in zip(prefixes, images, strict=True) for _ in of_image]
    labels, is_mask = np.full(sum(lengths), IGNORED), np.zeros(sum(lengths), dtype=bool)
    for branch, end in zip(branches, np.cumsum(lengths), strict=True):
        # Position s predicts token s + 1: the query's last token predicts the caption's first.
        labels[end - 1 - len(branch.caption) : end - 1] = branch.caption
        start = end - len(branch.ids)
        is_mask[start : start + branch.num_mask] = True
    positions = [first + np.arange(length) for first, length in zip(first_positions, lengths, strict=True)]
    counts = Counts()
    for prefix, values, of_image in zip(prefixes, features or pixels, images, strict=True):
        sizes = [
            Branch(len(branch.ids), len(branch.caption), len(branch.tiles.values) if branch.tiles else 0)
            for branch in of_image
        ]
        counts += packed_counts(len(values) if pixels else 0, len(prefix), sizes)
    return PackedBatch(
        prefix_ids=torch.tensor([token for prefix in prefixes for token in prefix]),
        prefix_positions=torch.from_numpy(np.concatenate([np.arange(len(prefix)) for prefix in prefixes])),
        input_ids=torch.tensor([token for branch in branches for token in branch.ids]),
        position_ids=torch.from_numpy(np.concatenate(positions)),
        branch=torch.from_numpy(np.repeat(np.arange(len(branches)), lengths)),
        labels=torch.from_numpy(labels),
        is_mask=torch.from_numpy(is_mask),
        layout=Layout(
            tuple(len(prefix) for prefix in prefixes),
            tuple(tuple(len(branch.ids) for branch in of_image) for of_image in images),
        ),
        pixel_values=torch.cat(pixels) if pixels else None,
        image_features=torch.cat(features) if features else None,
        mask_tiles=tuple(branch.tiles for branch in branches if branch.tiles is not None),
        num_regions=len(branches),
        pairs=_pairs(examples),
        counts=counts,
    )


def _pairs(examples: Sequence[Example]) -> Tensor:
    before = np.cumsum([0, *(len(example.regions) for example in examples)])
    pairs = [np.reshape(example.pairs, (-1, 2)) + at for example, at in zip(examples, before, strict=False)]
    return torch.from_numpy(np.concatenate(pairs).astype(np.int64))


def _branch(region: RegionExample, processor: CaptionerProcessor, *, tokens_per_tile: int, drop_empty: bool) -> _Branch:
    tiles, num_mask = None, 0
    if region.segmentation is not None:
        tiles = processor.mask_tiles(region.segmentation)
        num_mask = rows_of_mask(tiles, tokens_per_tile, drop_empty=drop_empty)
    query, caption = processor.branch_ids(region.query), processor.caption_ids(region.caption)
    return _Branch([0] * num_mask + query + caption, num_mask, caption, tiles)
