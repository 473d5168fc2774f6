"""Peak memory of a training worker, computed from configurations alone.

    sizes = Sizes.of(config, mask, stage=2, lora_rank=128)          parameters and widths, counted on the meta device
    memory = peak_memory(sizes, counts, Setting(num_workers=8))     bytes by part, for microbatches of `counts`

    held throughout   weights, 32-bit masters, Adam's two moments, and with ZeRO 3 DeepSpeed's bucket
    a microbatch      plus saved activations, vocabulary logits, the batch, gradients, buckets
    an optimizer step plus 32-bit gradients and temporaries
    peak              what is held, plus the larger of the two

Saved activations of a layer depend on what trains. A frozen linear layer saves its input only under ZeRO 3, whose
linear function does so; LoRA's first matrix saves its input after dropout, and dropout saves its mask. Per token:

    norms         2 x D in 32 bit
    attention     queries, keys, values; FlexAttention also its output, its sums, and the prefix's keys again
    MLP           3 x I: gate, gate after SiLU, up
    LoRA          5 x D + Q + I inputs, as many of dropout's mask (a byte each on GPUs), 7 x rank
    ZeRO 3        2 x D + Q + I inputs

In stage 1 the prefix runs without gradient and saves only its keys and values; with LoRA its tokens count like the
branches'. With activation checkpointing each layer saves its input, and one layer at a time saves the rest.

benchmarks/memory.py compares this with torch's allocations. Excluded: Python, the CUDA context, NCCL, and
fragmentation; `ureca plan` adds `CONTEXT_BYTES` for GPUs and leaves headroom.

Letters: D language width, Q and K widths of all query and all key heads, I width of the MLP, V vocabulary.
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
"""CUDA context, NCCL buffers and compiled kernels on a GPU: an allowance, not measured here."""
_MAX_LIVE = 1_000_000_000
"""Maximum weights that DeepSpeed's ZeRO 3 keeps gathered (default of `max_live_parameters`)."""
_PREFETCH = 50_000_000
"""Weights that ZeRO 3 gathers ahead (`prefetch_bucket_size`)."""
_PERSISTENT = 100_000
"""Smaller parameters stay unpartitioned on every worker (`param_persistence_threshold`)."""
_HEAD_TOKENS = 256
"""Tokens whose vocabulary logits exist at the same time (ureca.model.loss_head)."""
_SCORES = 2**22 // 8
"""Maximum scores per head of one product in CPU attention (ureca.model.attention)."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings that memory depends on, besides model and microbatch."""

    num_workers: int = 1
    zero_stage: Literal[1, 2, 3] = 1
    gpu: bool = True
    bf16: bool = True
    """GPU: DeepSpeed's bfloat16, all weights in bf16 with 32-bit masters. CPU: autocast, frozen weights in bf16 (except
    with ZeRO 3), trained weights in 32 bit."""
    bf16_masters: bool = True
    """DeepSpeed's bfloat16 mode, as on GPUs; False: autocast."""
    dropout: bool = True
    """LoRA dropout is above 0."""
    checkpointing: bool = False
    """Activation checkpointing."""
    offload_optimizer: bool = False
    offload_weights: bool = False
    keeps_image_tokens: bool = True
    """Encode images one by one before the microbatch; False: all images of the microbatch at once, within it."""

    @property
    def element(self) -> int:
        """Bytes per activation."""
        return 2 if self.bf16 else 4

    @property
    def trained_element(self) -> int:
        return 2 if self.bf16 and self.bf16_masters else 4

    @property
    def frozen_element(self) -> int:
        return 2 if self.bf16 and (self.bf16_masters or self.zero_stage < 3) else 4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Parameters and widths of the model."""

    stage: int
    frozen: int
    """Frozen parameters."""
    trained: int
    persistent: int
    """Parameters in tensors too small for ZeRO 3 to partition."""
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
    """Vision tokens per tile, before pixel shuffle."""
    tile_px: int
    tile_tokens: int
    mask: MaskEncoderConfig | None
    """Mask encoder, if it trains."""

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
        """Count parameters on the meta device."""
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
    """Peak bytes of a worker, by part."""

    weights: float
    """Model and adapter, and weights gathered by ZeRO 3."""
    optimizer: float
    """32-bit masters and Adam moments of this worker's partition."""
    gradients: float
    buffers: float
    """DeepSpeed's buckets."""
    activations: float
    """Saved activations, working set of the vision tower and of one layer, and the batch."""
    logits: float
    """Vocabulary logits, and the gradient that the head saves."""
    host: float
    """Offloaded to host memory; not part of the total."""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "host")


def peak_memory(sizes: Sizes, counts: Counts, setting: Setting, *, bucket: int = BUCKET_ELEMENTS) -> Memory:
    """Compute a worker's peak for microbatches of `counts`, with DeepSpeed buckets of `bucket` elements."""
    share = sizes.trained / setting.num_workers
    states = 12.0 * share  # also in float32, because ZeRO steps on a copy
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
        # The last gradient peaks: by then the language model's activations are freed, and buckets take their place.
        kept = _gradient_sums(sizes, setting)
        forward = activations + logits + kept
        backward = pass_buffers + gradients
        if backward > forward:
            return Memory(**parts, gradients=gradients, buffers=pass_buffers, activations=0.0, logits=0.0)
        return Memory(**parts, gradients=kept, buffers=0.0, activations=activations, logits=logits)
    step = 0.0 if setting.offload_optimizer else share * (setting.trained_element + 8)
    if step > pass_buffers + activations + logits:
        return Memory(**parts, gradients=gradients + step, buffers=0.0, activations=0.0, logits=0.0)
    return Memory(**parts, gradients=gradients, buffers=pass_buffers, activations=activations, logits=logits)


def _weights(sizes: Sizes, setting: Setting) -> float:
    frozen, trained = setting.frozen_element * sizes.frozen, setting.trained_element * sizes.trained
    if sizes.stage == 3:
        trained *= 2  # stage 2's adapter is kept as the reference
    if setting.zero_stage < 3:
        return frozen + trained
    kept = 0.0 if setting.offload_weights else (frozen + trained) / setting.num_workers
    persistent = setting.frozen_element * sizes.persistent * (1 - 1 / setting.num_workers)
    gathered = min(sizes.parameters, _MAX_LIVE) + min(sizes.parameters, _PREFETCH)
    return kept + persistent + setting.frozen_element * gathered


def _gradients(sizes: Sizes, setting: Setting) -> float:
    share = sizes.trained / setting.num_workers
    if setting.zero_stage == 1:
        sums = _gradient_sums(sizes, setting)
        return setting.trained_element * sizes.trained + (sums or setting.trained_element * share)
    return 0.0 if setting.offload_optimizer else 4.0 * share


def _gradient_sums(sizes: Sizes, setting: Setting) -> float:
    """Bytes of the float32 sums over the passes that DeepSpeed keeps, not partitioned, in ZeRO 1 with bfloat16."""
    return 4.0 * sizes.trained if setting.zero_stage == 1 and setting.trained_element == 2 else 0.0


def _layer_token(sizes: Sizes, setting: Setting) -> float:
    """Bytes saved per layer and token with gradient."""
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
        # Every layer saves its input; one layer, one run at a time, saves the rest.
        kept = layers * ((counts.branch + prefix) * sizes.width * e + states) + max(counts.branch, prefix) * of_token
    elif lora:
        # The last layer's prefix output is unused except for keys and values.
        kept = (layers * counts.branch + (layers - 1) * prefix) * of_token + states
    else:
        kept = layers * (counts.branch * of_token + states)
    if setting.gpu:
        kept += (1 if setting.checkpointing else layers) * states  # in one tensor, in addition to the branches' own
    batch = 4.0 * counts.mask_tiles * sizes.tile_px**2 + counts.prefix * sizes.width * e
    encoder = counts.mask_tiles * _mask_bytes(sizes.mask, setting.trained_element) if sizes.mask else 0.0
    vision = 0.0
    if counts.tiles:
        at_once = counts.tiles / max(1, counts.images) if setting.keeps_image_tokens else counts.tiles
        vision = at_once * sizes.vision_tokens * (2 * sizes.vision_width + 2 * sizes.vision_mlp) * e
        if not setting.keeps_image_tokens:
            batch += 4.0 * counts.tiles * 3 * sizes.tile_px**2
    alone = layers * states + counts.prefix * (3 * sizes.mlp + 3 * sizes.width) * e  # the prefix runs without gradient
    return batch + max(vision, alone, kept + encoder + _excess(sizes, counts, setting))


def _excess(sizes: Sizes, counts: Counts, setting: Setting) -> float:
    """Working set of one layer, beyond the vocabulary logits, which are freed by then."""
    working = counts.branch * (sizes.mlp * setting.element + 8 * sizes.width)
    if not setting.gpu:
        pairs = counts.shared_pairs + counts.branch_pairs
        working += 1.5 * setting.element * sizes.heads * min(pairs, _SCORES)
    return max(0.0, working - _logits(sizes, counts, setting))


def _logits(sizes: Sizes, counts: Counts, setting: Setting) -> float:
    """Logits and log-probabilities of a chunk of caption tokens, and the gradient of all (ureca.model.loss_head)."""
    at_once = min(counts.caption, _HEAD_TOKENS) * sizes.vocabulary * (4 + setting.element)
    return at_once + counts.caption * sizes.width * setting.element


# ---- parameter counts on the meta device


@functools.cache
def _base_parameters(config: str) -> tuple[int, ...]:
    """Return the size of every parameter of an InternVL, given its configuration as JSON."""
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
    """Bytes that the mask encoder's forward saves per tile, weights excluded."""
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

    # The difference of two tiles and one tile excludes constant parts (codes, locations).
    found = []
    for tiles in (1, 2):
        kept.clear()
        masks = torch.empty(tiles, 1, mask.tile_px, mask.tile_px, device="meta")
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder.body(masks, torch.empty(tiles, 4, device="meta"))
        found.append(sum(tensor.nbytes for tensor in kept.values()))
    return found[1] - found[0]
