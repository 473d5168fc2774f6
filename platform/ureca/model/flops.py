"""Tokens and FLOPs of a training step, from configurations alone.

    counts = packed_counts(tiles, prefix, branches)             content of a microbatch: tiles, tokens, query-key pairs
    parts = training_flops(config, mask, counts, learns)        {"vision": Flops(forward, backward), ...}
    total(parts)                                                FLOPs of the microbatch, to compare with a GPU's peak
    limit_speedup(config, mask, learns, tiles, branches)        packed over one region per sequence, at equal FLOP/s

Matrix products and convolutions count, two operations per multiply-add, like torch's FlopCounterMode
(tests/model/test_flops.py compares both). Attention counts the visible query-key pairs: half a square if causal.
Gradients count where something needs them:

    vision tower, projector     frozen and first: forward only
    frozen linear layer         activations: same as its forward; its weights: nothing
    LoRA, mask encoder          activations and weights: twice the forward (measured for the mask encoder)
    attention                   twice the forward, half of that for keys and values without gradient
    prefix                      nothing in stage 1; with LoRA as above, except the last layer, whose output is unused:
                                only keys and values
    first layer's q, k, v       no input gradient if the input is frozen
    head                        caption positions only: activations

Recomputed activations are not part of the model's work and are excluded unless requested.

Shapes: T tiles (thumbnail included), P prefix tokens, L tokens of a branch, N mask tokens per tile.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import InternVLConfig

    from ureca.model.mask_encoder import MaskEncoderConfig

PREFIX_MARKUP = 6
"""Prefix tokens besides image tokens: <|im_start|> user \\n <img> </img> \\n."""
DELIMITERS = 2
"""Delimiter tokens around a region's mask tokens."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, forward and backward."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class TrainedParts:
    """Trained parts: `TrainedParts(mask_encoder=True)` is stage 1, `TrainedParts(lora_rank=128)` stage 2."""

    mask_encoder: bool = False
    lora_rank: int = 0
    """LoRA rank; 0: no LoRA."""


@dataclass(frozen=True)
class Branch:
    """One region of an image: mask tokens, query and caption."""

    tokens: int
    """Total tokens (L)."""
    caption: int
    """Caption tokens, end token included: the positions of the head."""
    mask_tiles: float
    """Tiles through the mask encoder; 0 without a mask."""


@dataclass(frozen=True)
class Counts:
    """Content of one or several microbatches."""

    images: int = 0
    regions: int = 0
    tiles: float = 0
    """Image tiles through the vision tower; 0 for cached image features."""
    mask_tiles: float = 0
    prefix: float = 0
    """Tokens that run as a prefix, once for all regions."""
    branch: float = 0
    """Tokens that run in branches; without a shared prefix, all tokens."""
    caption: float = 0
    prefix_pairs: float = 0
    """Query-key pairs within prefixes."""
    shared_pairs: float = 0
    """Pairs of a branch query and a prefix key."""
    branch_pairs: float = 0
    """Pairs within branches."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def tokens(self) -> float:
        """Tokens through the language model."""
        return self.prefix + self.branch

    @property
    def pairs(self) -> float:
        return self.prefix_pairs + self.shared_pairs + self.branch_pairs


def prefix_tokens(config: InternVLConfig, tiles: int) -> int:
    """Return P: image tokens of all tiles (thumbnail included), plus markup."""
    return config.image_seq_length * tiles + PREFIX_MARKUP


def branch_of(*, mask_tiles: int, tokens_per_tile: int, query: int, caption: int) -> Branch:
    """Return the branch of a region whose mask touches `mask_tiles` tiles; `query` and `caption` include markup."""
    mask = tokens_per_tile * mask_tiles + DELIMITERS if mask_tiles else 0
    return Branch(mask + query + caption, caption, mask_tiles)


def packed_counts(tiles: int, prefix: int, branches: Sequence[Branch]) -> Counts:
    """Count all regions of one image behind one prefix."""
    lengths = [branch.tokens for branch in branches]
    return Counts(
        images=1,
        regions=len(branches),
        tiles=tiles,
        mask_tiles=sum(branch.mask_tiles for branch in branches),
        prefix=prefix,
        branch=sum(lengths),
        caption=sum(branch.caption for branch in branches),
        prefix_pairs=_causal(prefix),
        shared_pairs=prefix * sum(lengths),
        branch_pairs=sum(map(_causal, lengths)),
    )


def single_counts(tiles: int, prefix: int, branches: Sequence[Branch]) -> Counts:
    """Count each region as a separate sequence with its own vision forward and prefix, as the authors train."""
    lengths = [prefix + branch.tokens for branch in branches]
    return Counts(
        images=len(branches),
        regions=len(branches),
        tiles=tiles * len(branches),
        mask_tiles=sum(branch.mask_tiles for branch in branches),
        branch=sum(lengths),
        caption=sum(branch.caption for branch in branches),
        branch_pairs=sum(map(_causal, lengths)),
    )


def _causal(length: float) -> float:
    return length * (length + 1) / 2


def training_flops(
    config: InternVLConfig, mask: MaskEncoderConfig, counts: Counts, learns: TrainedParts, *, recompute: bool = False
) -> dict[str, Flops]:
    """Return FLOPs by part. `recompute` adds the recomputation of activation checkpointing to the backward."""
    return {
        "vision": Flops(counts.tiles * vision_tile(config)),
        "projector": Flops(counts.tiles * projector_tile(config)),
        "mask_encoder": _mask_encoder(mask, counts.mask_tiles, learns),
        "language_model": language_model(config, counts, learns, recompute=recompute),
        "head": head(config, counts.caption, learns),
    }


def total(parts: Mapping[str, Flops]) -> float:
    """Return the FLOPs of all parts, forward and backward."""
    return sum(part.total for part in parts.values())


def limit_speedup(
    config: InternVLConfig, mask: MaskEncoderConfig, learns: TrainedParts, *, tiles: int, branches: Sequence[Branch]
) -> float:
    """Return the maximum speed-up of packing over one region per sequence: the ratio of their FLOPs."""
    prefix = prefix_tokens(config, tiles)
    packed, single = packed_counts(tiles, prefix, branches), single_counts(tiles, prefix, branches)
    return total(training_flops(config, mask, single, learns)) / total(training_flops(config, mask, packed, learns))


def vision_tile(config: InternVLConfig) -> float:
    """Return the forward FLOPs of the vision tower per tile."""
    vision: Any = config.vision_config
    height, width = (size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True))
    patches, hidden = height * width, vision.hidden_size
    tokens = patches + 1
    embedding = 2 * vision.num_channels * vision.patch_size[0] * vision.patch_size[1] * hidden * patches
    linear = 2 * tokens * (4 * hidden**2 + 2 * hidden * vision.intermediate_size)
    return embedding + vision.num_hidden_layers * (linear + 4 * hidden * tokens**2)


def projector_tile(config: InternVLConfig) -> float:
    """Return the forward FLOPs of the projector per tile."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    hidden = text.hidden_size
    shuffled = vision.hidden_size * int(1 / config.downsample_ratio) ** 2
    return 2 * config.image_seq_length * (shuffled * hidden + hidden**2)


@dataclass(frozen=True)
class _Linear:
    """Parameter counts of linear layers: frozen weights, LoRA's input matrix, and all of LoRA."""

    frozen: float
    down: float
    lora: float

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]], rank: int) -> _Linear:
        return cls(
            frozen=sum(a * b for a, b in shapes),
            down=sum(rank * a for a, _ in shapes),
            lora=sum(rank * (a + b) for a, b in shapes),
        )

    @property
    def forward(self) -> float:
        return 2 * (self.frozen + self.lora)

    @property
    def backward(self) -> float:
        return 2 * (self.frozen + 2 * self.lora)

    @property
    def input_gradient(self) -> float:
        return 2 * (self.frozen + self.down)


def language_model(config: InternVLConfig, counts: Counts, learns: TrainedParts, *, recompute: bool = False) -> Flops:
    """Return the FLOPs of the language model's layers, without embedding and head."""
    text: Any = config.text_config
    layers, hidden, inner = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    head_dim = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    query, key = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    kv_shapes = [(hidden, key), (hidden, key)]
    qkv_shapes = [(hidden, query), *kv_shapes]
    mlp_shapes = [(hidden, inner), (hidden, inner), (inner, hidden)]
    every, qkv, kv = (
        _Linear.of(shapes, learns.lora_rank)
        for shapes in ([*qkv_shapes, (query, hidden), *mlp_shapes], qkv_shapes, kv_shapes)
    )
    pair = 4 * query  # scores, and weighted values

    def forward(tokens: float, pairs: float) -> float:
        return layers * (tokens * every.forward + pairs * pair)

    lora = bool(learns.lora_rank)
    if not (lora or learns.mask_encoder):
        return Flops(forward(counts.tokens, counts.pairs))
    branch = layers * (counts.branch * every.backward + 2 * pair * counts.branch_pairs)
    branch += layers * pair * counts.shared_pairs * (2 if lora else 1)
    if not learns.mask_encoder:
        branch -= counts.branch * qkv.input_gradient
    prefix = 0.0
    if lora:
        prefix = (layers - 1) * (counts.prefix * every.backward + 2 * pair * counts.prefix_pairs)
        prefix += counts.prefix * kv.backward  # the last layer
        prefix -= counts.prefix * (qkv if layers > 1 else kv).input_gradient  # the first layer
    if recompute:
        branch += forward(counts.branch, counts.shared_pairs + counts.branch_pairs)
        prefix += forward(counts.prefix, counts.prefix_pairs) if lora else 0.0
    return Flops(forward(counts.tokens, counts.pairs), branch + prefix)


def head(config: InternVLConfig, caption: float, learns: TrainedParts) -> Flops:
    """Return the FLOPs of the vocabulary head over caption positions; its weights are frozen in every stage."""
    text: Any = config.text_config
    forward = 2 * caption * text.hidden_size * text.vocab_size
    return Flops(forward, forward if learns.mask_encoder or learns.lora_rank else 0.0)


def _mask_encoder(mask: MaskEncoderConfig, tiles: float, learns: TrainedParts) -> Flops:
    of_tile = mask_encoder_tile(mask)
    return Flops(tiles * of_tile.forward, tiles * of_tile.backward if learns.mask_encoder else 0.0)


@functools.cache
def mask_encoder_tile(mask: MaskEncoderConfig) -> Flops:
    """Return the FLOPs of the mask encoder per tile, counted by torch on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ureca.model.mask_encoder import MaskEncoder

    with torch.device("meta"):
        encoder = MaskEncoder(mask)
    tile = torch.empty(1, 1, mask.tile_px, mask.tile_px, device="meta")
    with FlopCounterMode(display=False) as counter:
        tokens = encoder.body(tile, torch.empty(1, 4, device="meta"))
        forward = counter.get_total_flops()
        tokens.sum().backward()
    return Flops(forward, counter.get_total_flops() - forward)
