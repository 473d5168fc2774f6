"""How much memory a training worker needs at its peak, from configurations alone.

    sizes = Sizes.of(config, mask, stage=2, lora_rank=128)          what the model brings, counted on the meta device
    memory = peak_memory(sizes, counts, Setting(num_workers=8))     bytes by part, for passes of `counts`

    held throughout   weights, 32-bit masters, Adam's two moments, and with ZeRO 3 DeepSpeed's bucket
    a pass            on top: what autograd keeps, the vocabulary's scores, the batch, gradients, buckets
    an optimizer step on top: gradients in 32 bit, and temporaries
    peak              the larger of the two, on top of what is held

What autograd keeps of a layer follows from what trains. A frozen linear layer keeps its input only under ZeRO 3,
whose own linear function does so; LoRA's first matrix keeps its input after dropout, and dropout its mask. For a token:

    norms         2 x D in 32 bit
    attention     queries, keys, values; FlexAttention also its output, its sums, and the prefix's keys again
    MLP           3 x I: gate, gate after SiLU, up
    LoRA          5 x D + Q + I inputs, as many of dropout's mask (a byte each on GPUs), 7 x rank
    ZeRO 3        2 x D + Q + I inputs

In stage 1 the prefix runs without a gradient and keeps only its keys and values; with LoRA its tokens count as the
branches' do. With activation checkpointing a layer keeps its input, and one layer at a time the rest.

benchmarks/memory.py holds this against what torch allocates. Not in it: Python, CUDA's context, NCCL, and what is lost
between allocations; `ureca plan` adds `CONTEXT_BYTES` for GPUs and leaves headroom.

Letters: D language width, Q and K widths of all query and of all key heads, I width of the MLP, V vocabulary.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from ureca.training.deepspeed import BUCKET_ELEMENTS

if TYPE_CHECKING:
    from transformers import InternVLConfig

    from ureca.model.flops import Counts
    from ureca.model.mask_encoder import MaskEncoderConfig


CONTEXT_BYTES = 1_500_000_000
"""CUDA's context, NCCL's buffers and compiled kernels on a GPU: an allowance, seen nowhere here."""
_MAX_LIVE = 1_000_000_000
"""Weights that DeepSpeed's ZeRO 3 keeps gathered at most (its default `max_live_parameters`)."""
_PREFETCH = 50_000_000
"""Weights that it gathers ahead (`prefetch_bucket_size`)."""
_PERSISTENT = 100_000
"""Parameters smaller than this stay whole on every worker (`param_persistence_threshold`)."""
_HEAD_TOKENS = 256
"""Tokens whose scores over the vocabulary are there at once (ureca.model.loss_head)."""
_SCORES = 2**22 // 8
"""Scores a head that one product of the CPU's attention makes at most (ureca.model.attention)."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What memory depends on beside the model and the pass."""

    num_workers: int = 1
    zero_stage: Literal[1, 2, 3] = 1
    gpu: bool = True
    bf16: bool = True
    """On a GPU DeepSpeed's bfloat16: all weights in it, masters in 32 bit. On a CPU autocast: the frozen in it (but
    with ZeRO 3), what trains in 32 bit."""
    bf16_masters: bool = True
    """DeepSpeed's bfloat16, as on GPUs; False: autocast."""
    dropout: bool = True
    """Of LoRA, above 0."""
    checkpointing: bool = False
    """Activation checkpointing."""
    offload_optimizer: bool = False
    offload_weights: bool = False
    keeps_image_tokens: bool = True
    """Vision tower image by image, before the pass; False: all images of the pass at once, in it."""

    @property
    def element(self) -> int:
        """Bytes of an activation."""
        return 2 if self.bf16 else 4

    @property
    def trained_element(self) -> int:
        return 2 if self.bf16 and self.bf16_masters else 4

    @property
    def frozen_element(self) -> int:
        return 2 if self.bf16 and (self.bf16_masters or self.zero_stage < 3) else 4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the model brings: parameters, and widths."""

    stage: int
    frozen: int
    """Parameters that don't train."""
    trained: int
    persistent: int
    """Of all parameters, those in tensors so small that ZeRO 3 leaves them whole."""
    width: int
    query: int
    key: int
    heads: int
    mlp: int
    layers: int
    vocabulary: int
    lora_rank: int
    """0 in stage 1."""
    vision_width: int
    vision_mlp: int
    vision_tokens: int
    """Of a tile, before they are gathered to image tokens."""
    tile_px: int
    tile_tokens: int
    mask: MaskEncoderConfig | None
    """The mask encoder where it learns."""

    @classmethod
    def of(
        cls,
        config: InternVLConfig,
        mask: MaskEncoderConfig,
        *,
        stage: Literal[1, 2, 3],
        lora_rank: int,
        tune_mask_encoder: bool = False,
    ) -> Sizes:
        """Counted on the meta device."""
        text: Any = config.text_config
        vision: Any = config.vision_config
        across = vision.image_size[0] // vision.patch_size[0]
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        query, key = text.num_attention_heads * head, text.num_key_value_heads * head
        rank = lora_rank if stage > 1 else 0
        d, i = text.hidden_size, text.intermediate_size
        lines = [(d, query), (d, key), (d, key), (query, d), (d, i), (d, i), (i, d)] * text.num_hidden_layers
        lora = [rank * width for line in lines for width in line]
        base, encoder = _base_parameters(config.to_json_string()), _mask_parameters(mask)
        learns = stage == 1 or tune_mask_encoder
        return cls(
            stage=stage,
            frozen=sum(base) + (0 if learns else sum(encoder)),
            trained=sum(lora) + (sum(encoder) if learns else 0),
            persistent=sum(numel for numel in [*base, *encoder, *lora] if numel < _PERSISTENT),
            width=d,
            query=query,
            key=key,
            heads=text.num_attention_heads,
            mlp=i,
            layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            lora_rank=rank,
            vision_width=vision.hidden_size,
            vision_mlp=vision.intermediate_size,
            vision_tokens=across**2 + 1,
            tile_px=vision.image_size[0],
            tile_tokens=config.image_seq_length,
            mask=mask if learns else None,
        )

    @property
    def parameters(self) -> int:
        return self.frozen + self.trained


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a worker at its peak, by part."""

    weights: float
    """Of model and adapter, and what ZeRO 3 has gathered."""
    optimizer: float
    """32-bit masters and Adam's moments, of this worker's share."""
    gradients: float
    buffers: float
    """DeepSpeed's buckets."""
    activations: float
    """What autograd keeps, the vision tower's and a layer's working set, the batch."""
    logits: float
    """Scores over the vocabulary, and the gradient that the head keeps."""
    host: float
    """In the machine's memory instead, where offloading puts it there. Not part of the sum."""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "host")


def peak_memory(sizes: Sizes, counts: Counts, setting: Setting, *, bucket: int = BUCKET_ELEMENTS) -> Memory:
    """Peak of one worker whose passes hold `counts`, with DeepSpeed's bucket of so many elements."""
    share = sizes.trained / setting.num_workers
    states = 12.0 * share  # in float32 too, ZeRO steps on a copy
    host = states + 4 * share if setting.offload_optimizer else 0.0
    weights = _weights(sizes, setting)
    if setting.offload_weights:
        host += setting.frozen_element * sizes.parameters / setting.num_workers
    gradients = _gradients(sizes, setting)
    pass_buffers = bucket * setting.trained_element * (2 if setting.gpu and setting.zero_stage < 3 else 1)
    activations, logits = _activations(sizes, counts, setting), _logits(sizes, counts, setting)
    parts: dict[str, float] = {
        "weights": weights,
        "optimizer": 0.0 if setting.offload_optimizer else states,
        "host": host,
    }
    if sizes.stage == 1 and setting.zero_stage < 3:
        # The first gradient comes last: by then what the language model kept is gone, and buckets take its place.
        forward = activations + logits
        backward = pass_buffers + gradients
        if backward > forward:
            return Memory(**parts, gradients=gradients, buffers=pass_buffers, activations=0.0, logits=0.0)
        return Memory(**parts, gradients=0.0, buffers=0.0, activations=activations, logits=logits)
    step = 0.0 if setting.offload_optimizer else share * (setting.trained_element + 8)
    if step > pass_buffers + activations + logits:
        return Memory(**parts, gradients=gradients + step, buffers=0.0, activations=0.0, logits=0.0)
    return Memory(**parts, gradients=gradients, buffers=pass_buffers, activations=activations, logits=logits)


def _weights(sizes: Sizes, setting: Setting) -> float:
    frozen, trained = setting.frozen_element * sizes.frozen, setting.trained_element * sizes.trained
    if sizes.stage == 3:
        trained *= 2  # stage 2's adapter beside it, as the reference
    if setting.zero_stage < 3:
        return frozen + trained
    kept = 0.0 if setting.offload_weights else (frozen + trained) / setting.num_workers
    persistent = setting.frozen_element * sizes.persistent * (1 - 1 / setting.num_workers)
    gathered = min(sizes.parameters, _MAX_LIVE) + min(sizes.parameters, _PREFETCH)
    return kept + persistent + setting.frozen_element * gathered


def _gradients(sizes: Sizes, setting: Setting) -> float:
    share = sizes.trained / setting.num_workers
    if setting.zero_stage == 1:
        return setting.trained_element * (sizes.trained + share)
    return 0.0 if setting.offload_optimizer else setting.trained_element * share


def _layer_token(sizes: Sizes, setting: Setting) -> float:
    """Bytes that autograd keeps of one layer for one token that has a gradient."""
    e, d, q, k, i = setting.element, sizes.width, sizes.query, sizes.key, sizes.mlp
    kept = 2 * 4 * d + (q + 2 * k) * e + 3 * i * e
    if setting.gpu:
        kept += q * e + 4 * sizes.heads
    inputs = (2 * d + q + i) * e
    if sizes.lora_rank:
        kept += 7 * sizes.lora_rank * e
        if setting.dropout:
            kept += (5 * d + q + i) * (e + (1 if setting.gpu else e))
        else:
            kept += inputs
    if setting.zero_stage == 3 and (setting.dropout or not sizes.lora_rank):
        kept += inputs
    return kept


def _activations(sizes: Sizes, counts: Counts, setting: Setting) -> float:
    e, layers, lora = setting.element, sizes.layers, bool(sizes.lora_rank)
    of_token, prefix = _layer_token(sizes, setting), counts.prefix if lora else 0.0
    states = counts.prefix * 2 * sizes.key * e
    if setting.checkpointing:
        # Of each layer its input; of one, and one run at a time, the rest.
        kept = layers * ((counts.branch + prefix) * sizes.width * e + states) + max(counts.branch, prefix) * of_token
    elif lora:
        # Of the prefix nobody reads what the last layer makes but its keys and values.
        kept = (layers * counts.branch + (layers - 1) * prefix) * of_token + states
    else:
        kept = layers * (counts.branch * of_token + states)
    if setting.gpu:
        kept += (1 if setting.checkpointing else layers) * states  # beside the branches' own, in one piece
    batch = 4.0 * counts.mask_tiles * sizes.tile_px**2 + counts.prefix * sizes.width * e
    encoder = counts.mask_tiles * _mask_bytes(sizes.mask, setting.trained_element) if sizes.mask else 0.0
    vision = 0.0
    if counts.tiles:
        at_once = counts.tiles / max(1, counts.images) if setting.keeps_image_tokens else counts.tiles
        vision = at_once * sizes.vision_tokens * (2 * sizes.vision_width + 2 * sizes.vision_mlp) * e
        if not setting.keeps_image_tokens:
            batch += 4.0 * counts.tiles * 3 * sizes.tile_px**2
    alone = layers * states + counts.prefix * (3 * sizes.mlp + 3 * sizes.width) * e  # the prefix without a gradient
    return batch + max(vision, alone, kept + encoder + _excess(sizes, counts, setting))


def _excess(sizes: Sizes, counts: Counts, setting: Setting) -> float:
    """What a layer has in hand at once, beyond the vocabulary's scores, which are gone when it comes to that."""
    working = counts.branch * (sizes.mlp * setting.element + 8 * sizes.width)
    if not setting.gpu:
        pairs = counts.shared_pairs + counts.branch_pairs
        working += 1.5 * setting.element * sizes.heads * min(pairs, _SCORES)
    return max(0.0, working - _logits(sizes, counts, setting))


def _logits(sizes: Sizes, counts: Counts, setting: Setting) -> float:
    """Of some captions' tokens at a time scores and their logarithms, of all the gradient (ureca.model.loss_head)."""
    at_once = min(counts.caption, _HEAD_TOKENS) * sizes.vocabulary * (4 + setting.element)
    return at_once + counts.caption * sizes.width * setting.element


# ---- counted on the meta device


@functools.cache
def _base_parameters(config: str) -> tuple[int, ...]:
    """Sizes of every parameter of an InternVL, by its configuration as JSON."""
    import json

    from transformers import InternVLConfig

    from ureca.model.internvl.architectures import skeleton

    return tuple(p.numel() for p in skeleton(InternVLConfig.from_dict(json.loads(config))).parameters())


@functools.cache
def _mask_parameters(mask: MaskEncoderConfig) -> tuple[int, ...]:
    return tuple(p.numel() for p in _mask_encoder(mask).parameters())


def _mask_encoder(mask: MaskEncoderConfig) -> Any:
    import torch

    from ureca.model.mask_encoder import MaskEncoder

    with torch.device("meta"):
        return MaskEncoder(mask)


@functools.cache
def _mask_bytes(mask: MaskEncoderConfig, element: int) -> int:
    """What autograd keeps of the mask encoder's forward pass for one tile, its weights left out."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    encoder = _mask_encoder(mask).to(torch.bfloat16 if element == 2 else torch.float32)
    weights = {id(parameter) for parameter in encoder.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor if tensor._base is None else tensor._base
        if id(own) not in weights:
            kept[id(own)] = own
        return tensor

    # Two tiles less one: what does not grow with them (codes, places) is left out.
    found = []
    for tiles in (1, 2):
        kept.clear()
        masks = torch.empty(tiles, 1, mask.tile_px, mask.tile_px, device="meta")
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder.body(masks, torch.empty(tiles, 4, device="meta"))
        found.append(sum(tensor.nbytes for tensor in kept.values()))
    return found[1] - found[0]
