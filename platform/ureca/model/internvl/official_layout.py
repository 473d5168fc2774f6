"""InternVL in its official layout (`InternVLChatModel`, code next to the weights): configuration, names, tokenizer.

    vision_model.embeddings.*                  model.vision_tower.embeddings.*
    vision_model.encoder.layers.N.*            model.vision_tower.encoder.layer.N.*     qkv into three
    mlp1.0 / 1 / 3                             model.multi_modal_projector.layer_norm / linear_1 / linear_2
    language_model.model.*        Qwen2, Qwen3 model.language_model.*
                                  InternLM2    the same in Llama's names                wqkv into three
    language_model.lm_head, .output            lm_head

Left: the official names; right: those of transformers' own InternVL. No code of a checkpoint is run.
Source: transformers' convert_internvl_weights_to_hf.py for the mapping; InternLM2's wqkv, of shape
((key heads x (queries of each + 2) x head), width), from modeling_internlm2.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from ureca.errors import CheckpointError
from ureca.model.internvl.chat_template import CHAT_TEMPLATE

Family = Literal["qwen2", "qwen3", "internlm2"]
_FAMILIES: dict[str, Family] = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "InternLM2ForCausalLM": "internlm2",
}

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGE_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}


# ---- configuration


def read_official_config(source: Path) -> dict[str, Any]:
    """Read config.json of a checkpoint in the official layout. Raises CheckpointError that says what it is instead."""
    path = source / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{source}: no config.json in it; give the folder of an official InternVL checkpoint")
    record = json.loads(path.read_text())
    kind = record.get("model_type")
    if kind == InternVLConfig.model_type:
        raise CheckpointError(f"{source}: is already HF-native; pass it to --base directly")
    if kind != "internvl_chat":
        raise CheckpointError(
            f"{source}: not an InternVL but {kind}; give an official InternVL 2.5, 3 or 3.5 checkpoint"
        )
    return record


def family_of(record: dict[str, Any], where: Path) -> Family:
    """Return the family of its language model. Raises CheckpointError for one that this conversion does not support."""
    architecture = (record["llm_config"].get("architectures") or ["?"])[0]
    if architecture not in _FAMILIES:
        raise CheckpointError(
            f"{where}: its language model is {architecture}; this conversion supports {', '.join(_FAMILIES)}. Look "
            "for a checkpoint whose name ends in -hf"
        )
    return _FAMILIES[architecture]


def native_config(record: dict[str, Any], where: Path) -> InternVLConfig:
    """Return transformers' configuration of the same model; token ids are set later with the tokenizer's.

    Raises:
        CheckpointError: a key is missing, or a setting is not supported by HF-native InternVL.
    """
    family = family_of(record, where)
    vision, text = record["vision_config"], record["llm_config"]
    fixed = {"select_layer": -1, "ps_version": "v2", "use_thumbnail": True, "min_dynamic_patch": 1}
    odd = {key: record[key] for key, value in fixed.items() if record.get(key, value) != value}
    if record.get("force_image_size") not in (None, vision.get("image_size")):
        odd["force_image_size"] = record["force_image_size"]
    if text.get("use_sliding_window"):
        odd["llm_config.use_sliding_window"] = True
    if odd:
        raise CheckpointError(
            f"{where}: HF-native InternVL does not support {_listed(odd)}; this checkpoint can't be converted"
        )
    try:
        vision_config = InternVLVisionConfig(
            **{name: vision[name] for name in _VISION_KEYS},
            attention_bias=vision["qkv_bias"],
            use_qk_norm=vision["qk_normalization"],
        )
        scaling = text.get("rope_scaling") or {"type": "default"}
        rope = {key: value for key, value in scaling.items() if key not in ("type", "rope_type")}
        shared = {
            **{name: text[name] for name in _TEXT_KEYS},
            "rope_parameters": {
                "rope_type": scaling.get("rope_type") or scaling["type"],
                "rope_theta": text["rope_theta"],
                **rope,
            },
            "tie_word_embeddings": text.get("tie_word_embeddings", False),
        }
    except KeyError as error:
        raise CheckpointError(f"{where / 'config.json'}: lacks {error}, which the architecture needs") from error
    if family == "qwen2":
        text_config: Any = Qwen2Config(**shared)
    elif family == "qwen3":
        text_config = Qwen3Config(
            **shared, head_dim=text.get("head_dim", 128), attention_bias=text.get("attention_bias", False)
        )
    else:
        text_config = LlamaConfig(**shared, attention_bias=text.get("bias", False))
    side = vision["image_size"] // vision["patch_size"]
    return InternVLConfig(
        vision_config=vision_config,
        text_config=text_config,
        downsample_ratio=record["downsample_ratio"],
        image_seq_length=round((side * record["downsample_ratio"]) ** 2),
        tie_word_embeddings=shared["tie_word_embeddings"],
        architectures=["InternVLForConditionalGeneration"],
    )


_VISION_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "norm_type",
    "layer_norm_eps",
)
_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
)


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())


# ---- names of weights


_VISION_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"^vision_model\.encoder\.layers\.", "encoder.layer."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)
_INTERNLM2_NAMES = (
    (r"^tok_embeddings\.", "embed_tokens."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.attention\.wqkv\.", ".self_attn.qkv."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)
_PROJECTOR_NAMES = {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}
_HEADS = {"language_model.lm_head.weight", "language_model.output.weight"}

Split = Callable[[Tensor], list[Tensor]]


def native_parts(name: str, config: InternVLConfig) -> tuple[list[str], Split]:
    """Return the HF-native names of an official weight, and how to split it into them.

    A name that is not in the official layout is kept, so that the comparison of names reports it.
    """
    text: Any = config.text_config
    if name.startswith("vision_model."):
        native = "model.vision_tower." + _renamed(name, _VISION_NAMES)
    elif found := re.fullmatch(r"mlp1\.([013])\.(weight|bias)", name):
        native = f"model.multi_modal_projector.{_PROJECTOR_NAMES[found[1]]}.{found[2]}"
    elif name in _HEADS:
        native = "lm_head.weight"
    elif name.startswith("language_model.model."):
        rest = name.removeprefix("language_model.model.")
        native = "model.language_model." + (_renamed(rest, _INTERNLM2_NAMES) if text.model_type == "llama" else rest)
    else:
        native = name
    if ".qkv." not in native:
        return [native], lambda weight: [weight]
    names = [native.replace(".qkv.", f".{part}_proj.") for part in "qkv"]
    if name.startswith("vision_model."):
        return names, lambda weight: list(weight.chunk(3))
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    return names, lambda weight: _split_wqkv(weight, heads, kv_heads)


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def _split_wqkv(weight: Tensor, heads: int, kv_heads: int) -> list[Tensor]:
    """Split InternLM2's `(kv_heads * (queries + 2) * head, ...)` into queries, keys and values `(heads * head,
    ...)`."""
    queries = heads // kv_heads
    groups = weight.view(kv_heads, queries + 2, -1, *weight.shape[1:])
    return [part.flatten(0, 2) for part in (groups[:, :queries], groups[:, -2:-1], groups[:, -1:])]


# ---- tokenizer and processor


def native_processor(source: Path, record: dict[str, Any], config: InternVLConfig) -> InternVLProcessor:
    """Return transformers' InternVL processor with the checkpoint's vocabulary, tile size and tile limit.

    Raises:
        CheckpointError: no tokenizer that is readable without remote code, or it lacks a token.
    """
    vocabulary = _tokenizer(source).get_vocab()
    needed = [*IMAGE_TOKENS.values(), "<|im_start|>", "<|im_end|>"]
    missing = [token for token in needed if token not in vocabulary]
    rows = config.text_config.vocab_size  # type: ignore[union-attr]
    if missing or vocabulary["<IMG_CONTEXT>"] >= rows:
        what = f"lacks {', '.join(missing)}" if missing else f"has <IMG_CONTEXT> beyond the {rows} embeddings"
        raise CheckpointError(f"{source}: its tokenizer {what}; give the checkpoint as it was published")
    video = "<|video_pad|>" if "<|video_pad|>" in vocabulary else "<video>"  # the processor requires one; it is unused
    tokenizer = _tokenizer(source, extra_special_tokens={**IMAGE_TOKENS, "video_token": video})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    tile = record["vision_config"]["image_size"]
    pixels = {"size": {"height": tile, "width": tile}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    limit = record["max_dynamic_patch"] if record.get("dynamic_image_size", True) else 1
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(crop_to_patches=True, min_patches=1, max_patches=limit, **pixels),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**pixels),
        image_seq_length=config.image_seq_length,
        chat_template=CHAT_TEMPLATE,
    )


def _tokenizer(source: Path, **options: Any) -> PreTrainedTokenizerFast:
    if (source / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(str(source), **options)
    if (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
        return Qwen2Tokenizer.from_pretrained(str(source), **options)
    if (source / "tokenizer.model").is_file():
        return _internlm2_tokenizer(source, **options)
    raise CheckpointError(
        f"{source}: has no tokenizer; it needs tokenizer.json, vocab.json with merges.txt, or tokenizer.model"
    )


def _internlm2_tokenizer(source: Path, **options: Any) -> PreTrainedTokenizerFast:
    """Build a Llama tokenizer from InternLM2's SentencePiece vocabulary.

    The published tokenizer maps names such as <|im_end|> to ids that SentencePiece calls [UNUSED_TOKEN_145]; here they
    are in the vocabulary. Raises CheckpointError if a token would get another id.
    """
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    extracted: Any = SentencePieceExtractor(str(source / "tokenizer.model")).extract(LlamaTokenizer.model)
    vocabulary: dict[str, int] = extracted["vocab"]
    by_id = {number: piece for piece, number in vocabulary.items()}
    added = _added_tokens(source)
    for number, token in added.items():
        if number in by_id and by_id[number] != token:
            del vocabulary[by_id[number]]
            vocabulary[token] = number
    tokenizer = LlamaTokenizer(
        vocab=vocabulary,
        merges=[pair for pair in extracted["merges"] if "".join(pair) in vocabulary],
        add_prefix_space=False,
        add_bos_token=True,
        pad_token="</s>",
        **options,
    )
    tokenizer.add_tokens([token for _, token in sorted(added.items())], special_tokens=True)
    wrong = {token: number for number, token in added.items() if tokenizer.convert_tokens_to_ids(token) != number}
    if wrong:
        raise CheckpointError(f"{source}: these tokens got other ids than {_listed(wrong)}; is a file missing?")
    return tokenizer


def _added_tokens(source: Path) -> dict[int, str]:
    """Return the tokens outside the vocabulary by id, from either file that lists them."""
    tokens: dict[int, str] = {}
    if (path := source / "added_tokens.json").is_file():
        tokens |= {number: token for token, number in json.loads(path.read_text()).items()}
    if (path := source / "tokenizer_config.json").is_file():
        decoder = json.loads(path.read_text()).get("added_tokens_decoder", {})
        tokens |= {int(number): entry["content"] for number, entry in decoder.items()}
    return tokens
