"""Nano: an InternVL of a few million parameters with its tokenizer, for two cores and for every test.

Built from transformers' InternVL classes, scaled down, without changes to the architecture. Decisions:
- one tile of 256 px, patches of 16 px, no pixel shuffle (`downsample_ratio` 1): 256 image tokens, two blocks of
  vLLM's CPU prefix cache (128 tokens each);
- weights initialized at about 1/sqrt(width): with transformers' 0.02 a model this small learns no lookup;
- a vision tower whose attention starts with similar, nearby patches: sine positions, keys close to queries (mimetic
  initialization, Trockman and Kolter, arXiv 2305.09828). Part-of relations are then learned several times sooner;
- rotary base 1e6, so that most of a head's dimensions hardly rotate over a few hundred tokens and attention by
  content (which patch lies where) works over that distance;
- attention that looks up a place is initialized: pretraining sets it from the image tokens before it starts
  on answers (`ureca.nano.location_init.look_up_by_place`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from ureca.model.internvl.chat_template import CHAT_TEMPLATE
from ureca.model.processor import GRID

TILE_PX, PATCH_PX = 256, 16
IMAGE_TOKENS = (TILE_PX // PATCH_PX) ** 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
LOCATIONS = tuple(f"<p{cell:04d}>" for cell in range(GRID * GRID))


def nano_tokenizer(texts: Iterable[str], num_words: int = 1280) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `num_words` on `texts`, with InternVL's special tokens and location tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_words,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Not special: they occur in the answers.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in LOCATIONS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def nano_processor(tokenizer: PreTrainedTokenizerFast, *, tile_limit: int = 1) -> InternVLProcessor:
    """Return transformers' InternVL processor with nano's tile size."""
    image_processor = GotOcr2ImageProcessor(
        size={"height": TILE_PX, "width": TILE_PX},
        crop_to_patches=True,
        min_patches=1,
        max_patches=tile_limit,
    )
    return InternVLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": TILE_PX, "width": TILE_PX}),
        image_seq_length=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def nano_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    width: int = 192,
    layers: int = 4,
    vision_width: int = 192,
    vision_layers: int = 4,
) -> InternVLConfig:
    """Return nano's InternVL configuration; heads of 32, the minimum of vLLM's CPU attention."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = Qwen2Config(
        # vLLM gives its placeholder for prompt embeddings the id after the tokenizer's last: reserve rows for it.
        vocab_size=(len(tokenizer) // 64 + 1) * 64,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=4096,
        initializer_range=width**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=end,
    )
    vision = InternVLVisionConfig(
        hidden_size=vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_width // 32,
        intermediate_size=vision_width * 4,
        image_size=TILE_PX,
        patch_size=PATCH_PX,
        attention_bias=True,
        initializer_range=vision_width**-0.5,
        layer_scale_init_value=1.0,
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=int(tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")),  # type: ignore[arg-type]
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=1.0,
        tie_word_embeddings=True,
    )


def new_nano(config: InternVLConfig, *, seed: int) -> InternVLForConditionalGeneration:
    """Return a newly initialized nano. The module docstring lists the differences from transformers' initialization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(config)
        with torch.no_grad():
            tower = model.model.vision_tower
            places = tower.embeddings.position_embeddings
            places[0, 1:] = _position_waves(*places[0, 1:].shape)
            for layer in tower.encoder.layer:
                looks = layer.attention
                looks.k_proj.weight.mul_(0.3).add_(looks.q_proj.weight, alpha=0.7)
            for layer in model.model.language_model.layers:
                layer.self_attn.o_proj.weight.mul_(0.5)
                layer.mlp.down_proj.weight.mul_(0.5)
    return model


def _position_waves(patches: int, width: int) -> Tensor:
    """Return `(patches, width)`: sines of row and column, so that neighbors are similar; half of a patch's scale."""
    side = int(patches**0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phases = torch.stack([x.flatten(), y.flatten()], dim=1) / side @ torch.randn(2, width // 2) * 6
    return torch.cat([phases.sin(), phases.cos()], dim=1) * 0.7


def save_nano(model: InternVLForConditionalGeneration, processor: InternVLProcessor, directory: str | Path) -> None:
    """Write an HF-native folder with bf16 weights (they are read as float32 on a CPU)."""
    directory = Path(directory)
    copy: Any = InternVLForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(directory)
    processor.save_pretrained(directory)
