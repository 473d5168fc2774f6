"""Tokens and floating-point operations of a training step, from configurations alone.

    counts = packed_counts(tiles, prefix, branches)             what one pass holds: tiles, tokens, query-key pairs
    parts = training_flops(config, mask, counts, learns)        {"vision": Flops(forward, backward), ...}
    total(parts)                                                operations of the pass, to be held against a GPU's peak
    limit_speedup(config, mask, learns, tiles, branches)        packed over one region per sequence, at equal FLOP/s

What is counted: matrix products and convolutions, two operations for each multiply-add, as torch's FlopCounterMode
does (tests/model/test_flops.py holds these formulas against it). Attention counts the pairs of a query and a key that
it may see: half of a square where it is causal. A gradient counts where something asks for it:

    vision tower, projector     frozen and first: forward only
    frozen linear layer         activations: as much as its forward; its weights: nothing
    LoRA, mask encoder          activations and weights: twice the forward (measured for the mask encoder)
    attention                   twice the forward, half of that for keys and values that nothing asks of
    prefix                      nothing in stage 1; with LoRA as above, but of the last layer, whose output nobody
                                reads, only keys and values
    first layer's q, k, v       no gradient of their input where that is frozen
    head                        caption positions alone: activations

Recomputed activations are no work of the model: they are left out unless asked for.

Shapes: T tiles (thumbnail included), P prefix tokens, L tokens of a branch, N mask tokens a tile.
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
"""Tokens of the prefix that are not the image's: <|im_start|> user \\n <img> </img> \\n."""
DELIMITERS = 2
"""Tokens that the mask encoder puts around a region's mask tokens."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class TrainedParts:
    """What trains: `Learns(mask_encoder=True)` is stage 1, `Learns(lora_rank=128)` stage 2."""

    mask_encoder: bool = False
    lora_rank: int = 0
    """0: no LoRA."""


@dataclass(frozen=True)
class Branch:
    """One region of an image: mask tokens, query and caption."""

    tokens: int
    """L, all of them together."""
    caption: int
    """Of these the caption's, end marker included: what the head computes."""
    mask_tiles: float
    """Tiles that went through the mask encoder; 0 without a mask."""


@dataclass(frozen=True)
class Counts:
    """What one pass, or several added up, bring before the model."""

    images: int = 0
    regions: int = 0
    tiles: float = 0
    """Image tiles through the vision tower; 0 where image tokens were kept."""
    mask_tiles: float = 0
    prefix: float = 0
    """Tokens that run as a prefix, once for all regions."""
    branch: float = 0
    """Tokens that run in branches; without a shared prefix, all tokens."""
    caption: float = 0
    prefix_pairs: float = 0
    """Query-key pairs within prefixes."""
    shared_pairs: float = 0
    """Pairs of a branch's query and a key of its prefix."""
    branch_pairs: float = 0
    """Pairs within branches."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def tokens(self) -> float:
        """Through the language model."""
        return self.prefix + self.branch

    @property
    def pairs(self) -> float:
        return self.prefix_pairs + self.shared_pairs + self.branch_pairs


def prefix_tokens(config: InternVLConfig, tiles: int) -> int:
    """P: image tokens of all tiles (thumbnail included) and the markup around them."""
    return config.image_seq_length * tiles + PREFIX_MARKUP


def branch_of(*, mask_tiles: int, tokens_per_tile: int, query: int, caption: int) -> Branch:
    """A region whose mask touches `mask_tiles` tiles; `query` and `caption` count their markup."""
    mask = tokens_per_tile * mask_tiles + DELIMITERS if mask_tiles else 0
    return Branch(mask + query + caption, caption, mask_tiles)


def packed_counts(tiles: int, prefix: int, branches: Sequence[Branch]) -> Counts:
    """All regions of one image behind one prefix."""
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
    """Each region a sequence of its own, with its own pass through vision tower and prefix, as the authors train."""
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
    """Operations by part. `recompute` adds what activation checkpointing does again to the backward."""
    return {
        "vision": Flops(counts.tiles * vision_tile(config)),
        "projector": Flops(counts.tiles * projector_tile(config)),
        "mask_encoder": _mask_encoder(mask, counts.mask_tiles, learns),
        "language_model": language_model(config, counts, learns, recompute=recompute),
        "head": head(config, counts.caption, learns),
    }


def total(parts: Mapping[str, Flops]) -> float:
    """Operations of all parts, forward and backward."""
    return sum(part.total for part in parts.values())


def limit_speedup(
    config: InternVLConfig, mask: MaskEncoderConfig, learns: TrainedParts, *, tiles: int, branches: Sequence[Branch]
) -> float:
    """How many times faster than one region per sequence packing can be: the ratio of their operations."""
    prefix = prefix_tokens(config, tiles)
    packed, single = packed_counts(tiles, prefix, branches), single_counts(tiles, prefix, branches)
    return total(training_flops(config, mask, single, learns)) / total(training_flops(config, mask, packed, learns))


def vision_tile(config: InternVLConfig) -> float:
    """Forward operations of the vision tower for one tile."""
    vision: Any = config.vision_config
    height, width = (size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True))
    patches, hidden = height * width, vision.hidden_size
    tokens = patches + 1
    embedding = 2 * vision.num_channels * vision.patch_size[0] * vision.patch_size[1] * hidden * patches
    linear = 2 * tokens * (4 * hidden**2 + 2 * hidden * vision.intermediate_size)
    return embedding + vision.num_hidden_layers * (linear + 4 * hidden * tokens**2)


def projector_tile(config: InternVLConfig) -> float:
    """Forward operations of the projector for one tile."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    hidden = text.hidden_size
    shuffled = vision.hidden_size * int(1 / config.downsample_ratio) ** 2
    return 2 * config.image_seq_length * (shuffled * hidden + hidden**2)


@dataclass(frozen=True)
class _Linear:
    """Weights of linear layers: the frozen ones, and of LoRA's two matrices the one that reads the input and all."""

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
    """Operations of the language model's layers, without embedding and head."""
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
    pair = 4 * query  # scores, and values weighed by them

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
        prefix -= counts.prefix * (qkv if layers > 1 else kv).input_gradient  # the first
    if recompute:
        branch += forward(counts.branch, counts.shared_pairs + counts.branch_pairs)
        prefix += forward(counts.prefix, counts.prefix_pairs) if lora else 0.0
    return Flops(forward(counts.tokens, counts.pairs), branch + prefix)


def head(config: InternVLConfig, caption: float, learns: TrainedParts) -> Flops:
    """Operations of the vocabulary's head over the caption's positions; its weights are frozen in every stage."""
    text: Any = config.text_config
    forward = 2 * caption * text.hidden_size * text.vocab_size
    return Flops(forward, forward if learns.mask_encoder or learns.lora_rank else 0.0)


def _mask_encoder(mask: MaskEncoderConfig, tiles: float, learns: TrainedParts) -> Flops:
    of_tile = mask_encoder_tile(mask)
    return Flops(tiles * of_tile.forward, tiles * of_tile.backward if learns.mask_encoder else 0.0)


@functools.cache
def mask_encoder_tile(mask: MaskEncoderConfig) -> Flops:
    """Operations of the mask encoder for one tile: counted by torch on tensors without data, of whatever kind it is."""
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
