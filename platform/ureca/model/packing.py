"""Pack all regions of an image behind one image prefix.

    prefixes       (B, P)   [ image ........ ]                                       one for each image
    bins           (G, W)   [ mask query caption | mask query caption | padding ]    branches, several to a bin
    position_ids            [ P ...              | P ...              | 0 ...   ]    P: length of its own prefix

A branch's token sees its image's prefix and, causally, its own branch: loss and gradients equal those of R separate
sequences (tests/model/test_packing.py). Branches of unlike length and images of unlike number of regions would pad
each other; bins hold as many branches of one image as fit.

The language model runs twice over the same weights: over the prefixes, where each layer's keys and values are kept,
then over the bins, where each attends to those. Where nothing before them learns, the first run needs no gradient.

Shapes: B images, P tokens of the longest prefix, G bins, W tokens a bin, T tiles, M mask tokens, D hidden, H heads.
Source: the sequence, URECA (arXiv 2504.05305) section 4; the packing is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ureca.model.mask_encoder import MaskTiles, rows_of_mask
from ureca.model.processor import CaptionerProcessor
from ureca.regions.rle import Rle

PADDING = -1
IGNORED = -100


@dataclass(frozen=True)
class RegionExample:
    segmentation: Rle | None
    """COCO RLE of the region; None leaves out the mask tokens (the control without a region cue)."""
    query: str
    caption: str


@dataclass(frozen=True)
class Example:
    image: np.ndarray | Tensor
    """(H, W, 3) uint8 RGB; or its image tokens (T, 256, D), where they were computed before."""
    regions: tuple[RegionExample, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    """For preference tuning: (chosen, rejected), places in `regions` of two captions of one region."""


@dataclass(frozen=True)
class PackedBatch:
    """Everything a training step needs, on one device."""

    prefix_ids: Tensor
    """(B, P) int64; what is shorter than P is padded on the right with the end marker."""
    prefix_valid: Tensor
    """(B, P) bool: which of them are no padding."""
    image: Tensor
    """(G,) int64: the image that each bin belongs to."""
    input_ids: Tensor
    """(G, W) int64; mask positions hold the padding id and are overwritten by mask tokens."""
    position_ids: Tensor
    """(G, W) int64."""
    branch: Tensor
    """(G, W) int64: the region's number in its image, -1 padding."""
    labels: Tensor
    """(G, W) int64: the token that position w must predict, -100 where the loss does not look."""
    is_mask: Tensor
    """(G, W) bool: where mask tokens (delimiters included) go, in order of appearance."""
    pixel_values: Tensor | None
    """(sum of T, 3, tile, tile) float32; None where the examples came with image tokens."""
    image_features: Tensor | None
    """(sum of T, 256, D) image tokens where the examples came with them."""
    mask_tiles: tuple[MaskTiles, ...]
    """One for each region with a mask, in order of appearance."""
    num_regions: int
    """Branches: a region that is shown with several captions counts once for each."""
    pairs: Tensor
    """(K, 2) int64: chosen and rejected branch of each pair, counted as `branch_numbers` does."""

    def branch_numbers(self) -> Tensor:
        """(G, W) int64: each token's branch, counted over all images in the order of the examples; -1 padding."""
        of_image = self.image.new_zeros(len(self.prefix_ids))
        of_image = of_image.scatter_reduce(0, self.image, self.branch.amax(dim=1) + 1, "amax")
        numbers = (of_image.cumsum(0) - of_image)[self.image][:, None] + self.branch
        return numbers.masked_fill(self.branch == PADDING, PADDING)

    def to(self, device: torch.device | str) -> PackedBatch:
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors, mask_tiles=tuple(tile.to(device) for tile in self.mask_tiles))


@dataclass(frozen=True)
class _Branch:
    number: int
    ids: list[int]
    num_mask: int
    caption: list[int]
    first_position: int
    tiles: MaskTiles | None


def pack(
    examples: Sequence[Example], processor: CaptionerProcessor, *, tokens_per_tile: int, drop_empty: bool
) -> PackedBatch:
    """Pack examples into one batch.

    Args:
        examples: either all with their pixels or all with their image tokens.
        tokens_per_tile: N of the mask encoder; a region's mask takes N * (kept tiles) + 2 positions.
        drop_empty: leave out tiles that the region does not touch (the `tokens` encoder does).
    """
    features = [example.image for example in examples if isinstance(example.image, Tensor)]
    pixels = [processor.image_inputs(e.image) for e in examples if not isinstance(e.image, Tensor)]
    assert not (features and pixels), "pixels and image tokens in one batch"
    inputs = features or pixels
    prefixes = [processor.prefix_ids(len(values)) for values in inputs]
    images = [
        [
            _branch(number, region, processor, len(prefix), tokens_per_tile=tokens_per_tile, drop_empty=drop_empty)
            for number, region in enumerate(example.regions)
        ]
        for example, prefix in zip(examples, prefixes, strict=True)
    ]
    longest = max(len(prefix) for prefix in prefixes)
    bins, width = _bins([[len(branch.ids) for branch in branches] for branches in images], longest)
    columns = {name: np.full((len(bins), width), fill) for name, fill in _FILLS.items()}
    placed = []
    for row, (image, members) in enumerate(bins):
        at = 0
        for branch in (images[image][member] for member in members):
            placed.append(branch)
            length = len(branch.ids)
            columns["input_ids"][row, at : at + length] = branch.ids
            columns["position_ids"][row, at : at + length] = branch.first_position + np.arange(length)
            columns["branch"][row, at : at + length] = branch.number
            # Position w predicts token w + 1: the query's last token predicts the caption's first.
            columns["labels"][row, at + length - 1 - len(branch.caption) : at + length - 1] = branch.caption
            columns["is_mask"][row, at : at + branch.num_mask] = True
            at += length
    end = processor.end_token_id
    return PackedBatch(
        prefix_ids=torch.tensor([prefix + [end] * (longest - len(prefix)) for prefix in prefixes]),
        prefix_valid=torch.arange(longest) < torch.tensor([[len(prefix)] for prefix in prefixes]),
        image=torch.tensor([image for image, _ in bins]),
        pixel_values=torch.cat(pixels) if pixels else None,
        image_features=torch.cat(features) if features else None,
        mask_tiles=tuple(branch.tiles for branch in placed if branch.tiles is not None),
        num_regions=len(placed),
        pairs=_pairs(examples),
        **{name: torch.from_numpy(column) for name, column in columns.items()},
    )


def _pairs(examples: Sequence[Example]) -> Tensor:
    before = np.cumsum([0, *(len(example.regions) for example in examples)])
    pairs = [np.reshape(example.pairs, (-1, 2)) + at for example, at in zip(examples, before, strict=False)]
    return torch.from_numpy(np.concatenate(pairs).astype(np.int64))


_FILLS: dict[str, Any] = {
    "input_ids": 0,
    "position_ids": 0,
    "branch": PADDING,
    "labels": IGNORED,
    "is_mask": False,
}


def _branch(
    number: int,
    region: RegionExample,
    processor: CaptionerProcessor,
    first_position: int,
    *,
    tokens_per_tile: int,
    drop_empty: bool,
) -> _Branch:
    tiles, num_mask = None, 0
    if region.segmentation is not None:
        tiles = processor.mask_tiles(region.segmentation)
        num_mask = rows_of_mask(tiles, tokens_per_tile, drop_empty=drop_empty)
    query, caption = processor.branch_ids(region.query), processor.caption_ids(region.caption)
    return _Branch(number, [0] * num_mask + query + caption, num_mask, caption, first_position, tiles)


_OTHER_WORK = 500
"""What a token costs apart from attention, in keys that it might attend to instead; seen on nano and a CPU."""


def _bins(lengths: list[list[int]], prefix: int) -> tuple[list[tuple[int, list[int]]], int]:
    """Put branches into bins: `(image, its branches in the bin)` each, and the width, of those tried the cheapest.

    Wider bins hold less padding, but each token meets more keys, its neighbors' among them. First fit, longest first.
    """
    longest = max(max(of_image) for of_image in lengths)
    best: tuple[float, list[tuple[int, list[int]]], int] | None = None
    for factor in (1.0, 1.25, 1.5, 2.0, 2.5, 3.0):
        width = round(longest * factor)
        bins = [(image, members) for image, of_image in enumerate(lengths) for members in _first_fit(of_image, width)]
        cost = len(bins) * width * (_OTHER_WORK + prefix + width)
        if best is None or cost < best[0]:
            best = (cost, bins, width)
    assert best is not None
    return best[1], best[2]


def _first_fit(lengths: list[int], width: int) -> list[list[int]]:
    """Which branches of an image share a bin of `width` tokens."""
    bins: list[list[int]] = []
    left: list[int] = []
    for member in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((b for b, room in enumerate(left) if room >= lengths[member]), len(bins))
        if place == len(bins):
            bins.append([])
            left.append(width)
        bins[place].append(member)
        left[place] -= lengths[member]
    return bins


@dataclass(frozen=True)
class PrefixRun:
    """The attention of the run over prefixes: causal. Keeps each layer's keys and values, (B, H, P, head) each."""

    states: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class BinsRun:
    """The attention of the run over bins: each token sees its image's prefix and, causally, its own branch."""

    states: list[tuple[Tensor, Tensor]]
    """What PrefixRun kept, layer by layer."""
    image: Tensor
    """(G,) int64."""
    seen: Tensor
    """(G, 1, W, P + W) bool: which keys, the prefix's before the bin's, a token attends to."""

    @classmethod
    def of(cls, states: list[tuple[Tensor, Tensor]], batch: PackedBatch) -> BinsRun:
        width = batch.branch.shape[1]
        own = batch.branch[:, :, None] == batch.branch[:, None, :]
        own = own & torch.ones(width, width, dtype=torch.bool, device=own.device).tril()
        prefix = batch.prefix_valid[batch.image][:, None].expand(-1, width, -1)
        return cls(states, batch.image, torch.cat([prefix, own], dim=2)[:, None])


class MatrixAttention(torch.autograd.Function):
    """`attend` in matrix products, its gradient written out: in place where it can be, and nothing kept twice."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
        query = query * scale
        scores = query @ key.mT
        weights = scores.masked_fill_(~seen, float("-inf")).softmax(-1)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return weights @ value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, weights = ctx.saved_tensors
        grad_scores = torch._softmax_backward_data(grad @ value.mT, weights, -1, weights.dtype)
        return (grad_scores @ key) * ctx.scale, grad_scores.mT @ query, weights.mT @ grad, None, None


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Masked attention, `(G, H, W, head)`, of queries to keys and values `(G, H, P + W, head)`; `seen` is bool.

    In bfloat16 on a CPU, where nano trains, the fused kernel's gradient takes three times as long as matrix products.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return MatrixAttention.apply(query, key, value, seen, scale)
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_run: PrefixRun | BinsRun | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Both runs' attention in transformers' interface; whatever else it is asked for goes to its SDPA."""
    if packed_run is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    # Under autocast rotary positions leave queries and keys in float32; values have the type to compute in.
    # One copy to that type and to the layout that matrix products want, instead of one for each.
    query, key, value = (x.to(value.dtype, memory_format=torch.contiguous_format) for x in (query, key, value))
    if isinstance(packed_run, PrefixRun):
        packed_run.states.append((key, value))
        seen = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()
    else:
        seen = packed_run.seen
        before = packed_run.states[module.layer_idx]  # type: ignore[index]
        key, value = (
            torch.cat([kept.index_select(0, packed_run.image), own], dim=2)
            for kept, own in zip(before, (key, value), strict=True)
        )
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attend(query, key, value, seen, scale).transpose(1, 2).contiguous(), None


PACKED_ATTENTION = "ureca_packed"
ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, sdpa_mask)
