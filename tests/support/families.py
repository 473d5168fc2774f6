"""Scaled-down copies of the real InternVLs: the same configuration switches, widths of a few dozen."""

from typing import Any

from ureca.torchvision_ops import declare_missing_operators

declare_missing_operators()

import torch  # noqa: E402
from transformers import (  # noqa: E402
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor  # noqa: E402

from ureca.model.internvl.architectures import describe  # noqa: E402
from ureca.nano.architecture import CHAT_TEMPLATE, nano_tokenizer  # noqa: E402

TILE_PX, PATCH_PX = 224, 28  # 8 x 8 patches; pixel shuffle makes 16 tokens of them
IMAGE_TOKENS = 16
WORDS = ["a red round part at the left of the picture.", "describe this region so that no other fits."]
NUM_WORDS = 344

# One preset of each kind: language model, vision tower. Two query heads share a key head, as in all of them.
FAMILIES = {
    "qwen2": "internvl2.5-1b",
    "qwen3": "internvl3.5-8b",
    "llama": "internvl2.5-8b",
    "qwen2_6b_tower": "internvl2.5-38b",
    "llama_6b_tower": "internvl2.5-26b",
}


def scaled_down(preset: str, *, vocab_size: int, image_token_id: int = 5, tied: bool = False) -> InternVLConfig:
    """The preset's own configuration with small numbers; nothing else of it changes."""
    record = describe(preset).to_dict()
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": (TILE_PX, TILE_PX),
        "patch_size": (PATCH_PX, PATCH_PX),
    }
    text: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": vocab_size,
        "max_position_embeddings": 4096,
        "initializer_range": 0.09,  # about 1 / sqrt(width): transformers' 0.02 leaves all outputs alike
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    record["text_config"].pop("layer_types", None)
    return InternVLConfig(
        vision_config=record["vision_config"] | vision,
        text_config=record["text_config"] | text,
        image_token_id=image_token_id,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=tied,
    )


def drawn_weights(config: InternVLConfig, *, seed: int = 0) -> InternVLForConditionalGeneration:
    """Random weights everywhere, also where transformers starts with zeros and ones."""
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "embeddings.cls_token" in name or "position_embeddings" in name:
                around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(around + 0.1 * torch.randn_like(parameter))
            elif "vision_tower" in name or "projector" in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.eval()


def processor_for() -> InternVLProcessor:
    """Return transformers' processor for tiles of `TILE_PX`, with the hub's settings and nano's kind of vocabulary."""
    size = {"height": TILE_PX, "width": TILE_PX}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=size, crop_to_patches=False, min_patches=1, max_patches=12, **IMAGENET
        ),
        tokenizer=nano_tokenizer(WORDS * 50, num_words=NUM_WORDS),
        video_processor=InternVLVideoProcessor(size=size, **IMAGENET),
        image_seq_length=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
