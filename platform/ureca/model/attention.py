"""Visibility and attention of a packed batch.

The language model runs twice with the same weights:

    PrefixRun    over all prefixes, end to end: a token sees its own image's prefix, causally; keys and values are kept
    BranchRun    over all branches, end to end: a token sees its image's prefix and, causally, its own branch

Padding occurs only inside single matrix products. `packed_attention` implements both behind transformers' interface:

- on GPUs: FlexAttention, with the visibility rule (`may_see`) as a block mask that skips invisible blocks;
- on CPUs: matrix products over `Block`s of queries that see the same earlier keys entirely, and each other by a mask.
  Fused CPU attention supports neither grouped heads nor blocks, and its gradient is slow in bfloat16.

Shapes: P tokens of all prefixes, S of all branches, H query heads, K key-value heads, d head width; of a block, n rows,
w queries per row, b earlier keys per row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ureca.model.bin_packing import first_fit_decreasing

PACKED_ATTENTION = "ureca_packed"
NO_PREFIX = -1
"""Branch index of prefix keys, which all branches of the image may see."""

_QUERIES = 256
"""Approximate queries of a prefix per product; scores above the diagonal are wasted."""
_SCORES = 2**22
"""Approximate scores per product, so that they stay in the cache between product, softmax and product."""


@dataclass(frozen=True)
class Layout:
    """Positions of images and branches in a packed batch."""

    prefixes: tuple[int, ...]
    """Tokens of each image's prefix."""
    branches: tuple[tuple[int, ...], ...]
    """Tokens of each branch, per image."""


@dataclass(frozen=True)
class Block:
    """Queries whose attention is one matrix product."""

    queries: Tensor
    """(n, w) int64: positions of the queries in the run; padding repeats a query."""
    real: Tensor | None
    """(n, w) bool: which positions are queries; None: all."""
    before: Tensor
    """(n, b) int64: earlier keys that all queries of a row see, as indices into the earlier keys."""
    own: Tensor
    """(n or 1, w, w) bool: which of the row's own keys a query sees."""

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True)
class PrefixRun:
    """Attention run over prefixes."""

    seen: tuple[Block, ...] | BlockMask
    states: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values of each layer, (K, P, d), for the branch run. Recomputing a layer for its gradient keeps them."""


@dataclass(frozen=True)
class BranchRun:
    """Attention run over branches."""

    seen: tuple[Block, ...] | BlockMask
    states: dict[int, tuple[Tensor, Tensor]]
    """Keys and values kept by the prefix run."""


def both_runs(layout: Layout, device: torch.device) -> tuple[PrefixRun, BranchRun]:
    """Create both runs of a packed batch on a device."""
    before = prefix_run(layout, device)
    if device.type == "cpu":
        return before, BranchRun(_branch_blocks(layout), before.states)
    queries = sum(map(sum, layout.branches))
    keys = sum(layout.prefixes) + queries
    mask = create_block_mask(may_see(layout, device)[1], None, None, queries, keys, device=device, _compile=True)
    return before, BranchRun(mask, before.states)


def prefix_run(layout: Layout, device: torch.device) -> PrefixRun:
    """Create the run of the prefixes only: causal sequences, end to end."""
    if device.type == "cpu":
        return PrefixRun(_prefix_blocks(layout))
    tokens = sum(layout.prefixes)
    rule = may_see(layout, device)[0]
    return PrefixRun(create_block_mask(rule, None, None, tokens, tokens, device=device, _compile=True))


# ---- visibility rule, for FlexAttention


def may_see(layout: Layout, device: torch.device | str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return FlexAttention's `mask_mod` for both runs. In the second, prefix keys precede branch keys."""
    images = torch.arange(len(layout.prefixes), device=device)
    prefix_image = images.repeat_interleave(torch.tensor(layout.prefixes, device=device))
    lengths = torch.tensor([length for of_image in layout.branches for length in of_image], device=device)
    per_image = torch.tensor([len(of_image) for of_image in layout.branches], device=device)
    branch = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    image = images.repeat_interleave(per_image).repeat_interleave(lengths)
    key_image = torch.cat([prefix_image, image])
    key_branch = torch.cat([torch.full_like(prefix_image, NO_PREFIX), branch])
    num_keys = len(prefix_image)

    def in_prefix(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001 (FlexAttention's interface)
        return (prefix_image[q] == prefix_image[k]) & (k <= q)

    def in_branch(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        own = (key_branch[k] == branch[q]) & (k - num_keys <= q)
        return (key_image[k] == image[q]) & ((key_branch[k] == NO_PREFIX) | own)

    return in_prefix, in_branch


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


# ---- blocks, for matrix products


def _prefix_blocks(layout: Layout) -> tuple[Block, ...]:
    """Group prefixes of equal length, a few hundred queries at a time."""
    starts = np.cumsum([0, *layout.prefixes])
    blocks = []
    for length in sorted(set(layout.prefixes)):
        first = torch.tensor([int(start) for start, p in zip(starts, layout.prefixes, strict=False) if p == length])
        step = -(-length // max(1, round(length / _QUERIES)))
        for at in range(0, length, step):
            queries = first[:, None] + torch.arange(at, min(at + step, length))
            before = first[:, None] + torch.arange(at)
            own = torch.ones(1, queries.shape[1], queries.shape[1], dtype=torch.bool).tril()
            blocks += _cut(Block(queries, None, before, own))
    return tuple(blocks)


def _branch_blocks(layout: Layout) -> tuple[Block, ...]:
    """Pack the branches of each image into bins of one width; group bins with prefixes of equal length."""
    width = _bin_width(layout)
    starts = np.cumsum([0, *layout.prefixes])
    rows: dict[int, list[tuple[int, list[int], list[int]]]] = {}
    at = 0
    for image, lengths in enumerate(layout.branches):
        first = at + np.cumsum([0, *lengths])
        for members in first_fit_decreasing(lengths, width):
            places: list[Any] = []
            numbers: list[Any] = []
            for member in members:
                places += range(int(first[member]), int(first[member]) + lengths[member])
                numbers += [member] * lengths[member]
            rows.setdefault(layout.prefixes[image], []).append((int(starts[image]), places, numbers))
        at += sum(lengths)
    blocks = []
    for length, of_length in rows.items():
        queries = torch.tensor([places + places[:1] * (width - len(places)) for _, places, _ in of_length])
        branch = torch.tensor([numbers + [NO_PREFIX] * (width - len(numbers)) for *_, numbers in of_length])
        own = (branch[:, :, None] == branch[:, None, :]).tril()
        before = torch.tensor([start for start, *_ in of_length])[:, None] + torch.arange(length)
        blocks += _cut(Block(queries, branch != NO_PREFIX, before, own))
    return tuple(blocks)


def _bin_width(layout: Layout) -> int:
    """Return the bin width that gives the fewest scores; a multiple of 16, so that few shapes occur."""
    longest = max(max(lengths) for lengths in layout.branches)
    best, least = 0, float("inf")
    for factor in (1.0, 1.25, 1.5, 2.0, 2.5, 3.0):
        width = -(-round(longest * factor) // 16) * 16
        scores = sum(
            len(first_fit_decreasing(lengths, width)) * width * (prefix + width)
            for prefix, lengths in zip(layout.prefixes, layout.branches, strict=True)
        )
        if scores < least:
            best, least = width, scores
    return best


def _cut(block: Block) -> list[Block]:
    """Split a block so that its scores (for about 8 heads) fit the cache."""
    of_row = 8 * block.queries.shape[1] * (block.before.shape[1] + block.queries.shape[1])
    rows = max(1, _SCORES // of_row)
    return [
        Block(
            block.queries[at : at + rows],
            None if block.real is None or bool(block.real[at : at + rows].all()) else block.real[at : at + rows],
            block.before[at : at + rows],
            block.own if len(block.own) == 1 else block.own[at : at + rows],
        )
        for at in range(0, len(block), rows)
    ]


class BlockAttention(torch.autograd.Function):
    """Block-wise attention of queries `(H, S, d)` to earlier keys `(K, P, d)` and their own `(K, S, d)`.

    Scores grow with the product of lengths, so they are recomputed for the gradient instead of being saved. Returns
    `(S, H, d)`. Earlier keys without gradient cost nothing extra.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        before_key: Tensor,
        before_value: Tensor,
        blocks: tuple[Block, ...],
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, before_key, before_value)
        ctx.blocks, ctx.scale = blocks, scale
        out = query.new_zeros(query.shape[1], query.shape[0], query.shape[2])
        for block in blocks:
            q = _rows_of_queries(query, block, len(key)) * scale
            k, v = _rows_of_keys(before_key, key, block), _rows_of_keys(before_value, value, block)
            _put(out, _weights(q, k, block) @ v, block)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, before_key, before_value = ctx.saved_tensors
        grads = [torch.zeros_like(each) for each in (query.transpose(0, 1), key, value)]
        asked = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        # Accumulate in float32: many blocks add to one prefix's gradient.
        exact = torch.float32 if key.dtype == torch.bfloat16 else key.dtype
        before = [torch.zeros_like(each, dtype=exact) for each in (before_key, before_value)] if asked else []
        heads = len(key)
        grad = grad.transpose(0, 1)
        for block in ctx.blocks:
            q = _rows_of_queries(query, block, heads) * ctx.scale
            k, v = _rows_of_keys(before_key, key, block), _rows_of_keys(before_value, value, block)
            weights = _weights(q, k, block)
            of_out = _rows_of_queries(grad, block, heads, zero_rest=True)
            of_scores = torch._softmax_backward_data(of_out @ v.mT, weights, -1, weights.dtype)
            _put(grads[0], (of_scores @ k).mul_(ctx.scale), block)
            num_before = block.before.shape[1]
            skipped = 0 if asked else num_before
            for number, left, right in ((0, of_scores, q), (1, weights, of_out)):
                of_keys = left[..., skipped:].mT @ right
                if asked and num_before:
                    earlier = of_keys[..., :num_before, :].flatten(1, 2).to(exact)
                    before[number].index_add_(1, block.before.flatten(), earlier)
                own = of_keys[..., num_before - skipped :, :]
                grads[1 + number].index_add_(1, block.queries.flatten(), own.flatten(1, 2))
        of_before: list[Tensor | None] = [each.to(key.dtype) for each in before] or [None, None]
        return grads[0].transpose(0, 1), grads[1], grads[2], *of_before, None, None


def _rows_of_queries(query: Tensor, block: Block, key_heads: int, *, zero_rest: bool = False) -> Tensor:
    """Gather a block's queries, grouped by key head: `(H, S, d)` -> `(K, n, H/K * w, d)`."""
    n, w = block.queries.shape
    rows = query.index_select(1, block.queries.flatten()).view(key_heads, -1, n, w, query.shape[2])
    if zero_rest and block.real is not None:
        rows = rows * block.real[..., None]
    return rows.transpose(1, 2).flatten(2, 3)


def _rows_of_keys(before: Tensor, own: Tensor, block: Block) -> Tensor:
    """Gather a block's keys: `(K, P, d)` and `(K, S, d)` -> `(K, n, b + w, d)`."""
    parts = (before.index_select(1, block.before.flatten()), own.index_select(1, block.queries.flatten()))
    return torch.cat([part.view(len(own), len(block), -1, own.shape[2]) for part in parts], dim=2)


def _weights(query: Tensor, key: Tensor, block: Block) -> Tensor:
    """Compute softmax weights over visible keys: `(K, n, H/K * w, b + w)`."""
    scores = query @ key.mT
    w = block.queries.shape[1]
    scores.view(*scores.shape[:2], -1, w, scores.shape[3])[..., -w:].masked_fill_(~block.own[:, None], float("-inf"))
    return scores.softmax(-1)


def _put(out: Tensor, rows: Tensor, block: Block) -> None:
    """Scatter `(K, n, H/K * w, d)` to its queries' positions in `(S, H, d)`."""
    n, w = block.queries.shape
    rows = rows.view(rows.shape[0], n, -1, w, rows.shape[3]).permute(1, 3, 0, 2, 4).reshape(n, w, *out.shape[1:])
    if block.real is None:
        out[block.queries.flatten()] = rows.flatten(0, 1)
    else:
        out[block.queries[block.real]] = rows[block.real]


# ---- transformers' interface


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_run: PrefixRun | BranchRun | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention for either run, or transformers' SDPA without a run: `(1, H, S, d)` -> `(1, S, H, d)`."""
    if packed_run is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    # Under autocast, rotary embeddings leave queries and keys in float32; values have the compute dtype.
    query, key, value = (x.to(value.dtype)[0] for x in (query, key, value))
    layer: int = module.layer_idx  # type: ignore[assignment]
    if isinstance(packed_run, PrefixRun):
        before = (key, value)
        packed_run.states.setdefault(layer, before)
    else:
        before = packed_run.states[layer]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(packed_run.seen, tuple):
        return BlockAttention.apply(query, key, value, *before, packed_run.seen, scale)[None], None
    if isinstance(packed_run, BranchRun):
        key, value = (torch.cat(pair, dim=1) for pair in zip(before, (key, value), strict=True))
    out = _compiled_flex_attention()(
        query[None], key[None], value[None], block_mask=packed_run.seen, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, sdpa_mask)
