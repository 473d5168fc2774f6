"""Architectures of InternVL sizes: shapes and parameter counts without weights or network.

    describe("internvl2.5-8b")             transformers' InternVLConfig of that size
    skeleton(config)                       its model on the meta device: all shapes, no memory
    parameter_counts(skeleton)             vision tower, projector, language model
    check_base("internvl2.5-8b")           raises before a worker starts: not an InternVL, or no LoRA targets

Two vision towers (InternViT-300M, InternViT-6B), three families of language models: Qwen2.5, Qwen3, and InternLM2.5 in
transformers' form: Llama with the fused attention weights split. Embeddings and head are two separate matrices in all
of them.

Source: the checkpoints' config.json and their published sizes; vision configurations as in InternVL's own conversion to
HF-native form. `initializer_range` is transformers' default: the published 1e-10 cannot initialize new weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from ureca.errors import CheckpointError
from ureca.model.internvl.presets import PRESETS, preset, preset_path

LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The vision tower has modules of the same names, so the pattern must name the language model.
LORA_TARGETS = rf".*language_model.*\.({'|'.join(LORA_LAYERS)})"

_VISION: dict[str, dict[str, Any]] = {
    "300m": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "attention_bias": True,
        "norm_type": "layer_norm",
        "use_qk_norm": False,
    },
    "6b": {
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_hidden_layers": 45,
        "num_attention_heads": 25,
        "attention_bias": False,
        "norm_type": "rms_norm",
        "use_qk_norm": True,
    },
}

# width, MLP width, layers, heads, key-value heads
_QWEN2 = {
    "0.5b": (896, 4864, 24, 14, 2),
    "1.5b": (1536, 8960, 28, 12, 2),
    "3b": (2048, 11008, 36, 16, 2),
    "7b": (3584, 18944, 28, 28, 4),
    "14b": (5120, 13824, 48, 40, 8),
    "32b": (5120, 27648, 64, 40, 8),
    "72b": (8192, 29568, 80, 64, 8),
}
_QWEN3 = {
    "0.6b": (1024, 3072, 28, 16, 8),
    "1.7b": (2048, 6144, 28, 16, 8),
    "4b": (2560, 9728, 36, 32, 8),
    "8b": (4096, 12288, 36, 32, 8),
    "14b": (5120, 17408, 40, 40, 8),
    "32b": (5120, 25600, 64, 64, 8),
}
_INTERNLM2 = {
    "1.8b": (2048, 8192, 24, 16, 8),
    "7b": (4096, 14336, 32, 32, 8),
    "20b": (6144, 16384, 48, 48, 8),
}

# preset: vision tower, family and size of the language model
_PARTS = {
    "internvl2.5-1b": ("300m", "qwen2", "0.5b"),
    "internvl2.5-2b": ("300m", "internlm2", "1.8b"),
    "internvl2.5-4b": ("300m", "qwen2", "3b"),
    "internvl2.5-8b": ("300m", "internlm2", "7b"),
    "internvl2.5-26b": ("6b", "internlm2", "20b"),
    "internvl2.5-38b": ("6b", "qwen2", "32b"),
    "internvl2.5-78b": ("6b", "qwen2", "72b"),
    "internvl3-1b": ("300m", "qwen2", "0.5b"),
    "internvl3-2b": ("300m", "qwen2", "1.5b"),
    "internvl3-8b": ("300m", "qwen2", "7b"),
    "internvl3-14b": ("300m", "qwen2", "14b"),
    "internvl3-38b": ("6b", "qwen2", "32b"),
    "internvl3-78b": ("6b", "qwen2", "72b"),
    "internvl3.5-1b": ("300m", "qwen3", "0.6b"),
    "internvl3.5-2b": ("300m", "qwen3", "1.7b"),
    "internvl3.5-4b": ("300m", "qwen3", "4b"),
    "internvl3.5-8b": ("300m", "qwen3", "8b"),
    "internvl3.5-14b": ("300m", "qwen3", "14b"),
    "internvl3.5-38b": ("6b", "qwen3", "32b"),
}
_IMAGE_TOKEN_IDS = {"qwen2": 151667, "qwen3": 151671, "internlm2": 92546}


def describe(name: str) -> InternVLConfig:
    """Return the architecture of a preset without network access. Raises ConfigError with the known names."""
    if name not in _PARTS:
        return read_config(preset(name).base)
    vision, family, size = _PARTS[name]
    return InternVLConfig(
        vision_config=InternVLVisionConfig(**_VISION[vision]),
        text_config={"qwen2": _qwen2, "qwen3": _qwen3, "internlm2": _internlm2}[family](size),
        image_token_id=_IMAGE_TOKEN_IDS[family],
        tie_word_embeddings=False,
    )


def _shape(width: int, mlp_width: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """Return a row of a table of sizes by the names that transformers' configurations use."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _qwen2(size: str) -> Qwen2Config:
    return Qwen2Config(
        **_shape(*_QWEN2[size]),
        vocab_size=151674,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=151643,
        eos_token_id=151645,
    )


def _qwen3(size: str) -> Qwen3Config:
    return Qwen3Config(
        **_shape(*_QWEN3[size]),
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=151643,
        eos_token_id=151645,
    )


def _internlm2(size: str) -> LlamaConfig:
    rope = {"factor": 2.5, "rope_theta": 5e7} if size == "20b" else {"factor": 2.0, "rope_theta": 1e6}
    return LlamaConfig(
        **_shape(*_INTERNLM2[size]),
        vocab_size=92553,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "dynamic", **rope},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


# ---- shapes and sizes


def skeleton(config: PretrainedConfig) -> InternVLForConditionalGeneration:
    """Return transformers' model of that configuration on the meta device: shapes without memory."""
    with torch.device("meta"):
        return InternVLForConditionalGeneration(config)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class PartCounts:
    """Parameters of each part of an InternVL."""

    vision_tower: int
    projector: int
    embeddings: int
    """Token embeddings; includes the head if both are one matrix."""
    layers: int
    """Layers of the language model and its final norm."""
    head: int
    """0 if it is tied to the embeddings."""

    @property
    def language_model(self) -> int:
        return self.embeddings + self.layers + self.head

    @property
    def total(self) -> int:
        return self.vision_tower + self.projector + self.language_model


def parameter_counts(model: InternVLForConditionalGeneration) -> PartCounts:
    """Count the parameters of `model`, or of a skeleton, by part; each weight once."""
    inner: Any = model.model  # torch's type stubs do not know submodule names
    embeddings: Any = model.get_input_embeddings().weight
    language = _count(inner.language_model)
    return PartCounts(
        vision_tower=_count(inner.vision_tower),
        projector=_count(inner.multi_modal_projector),
        embeddings=embeddings.numel(),
        layers=language - embeddings.numel(),
        head=0 if model.lm_head.weight is embeddings else model.lm_head.weight.numel(),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- LoRA


def lora_targets(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that LoRA adapts, by name: those that peft finds with `LORA_TARGETS`."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(LORA_TARGETS, name)
    }


def lora_parameter_count(model: nn.Module, rank: int) -> int:
    """Return the parameters that LoRA of this rank adds: rank x (inputs + outputs) per adapted layer."""
    return sum(rank * (layer.in_features + layer.out_features) for layer in lora_targets(model).values())


def check_lora_targets(config: PretrainedConfig, where: str) -> None:
    """Raise CheckpointError unless each layer of the language model has all seven LoRA targets."""
    try:
        found = [name.rpartition(".")[2] for name in lora_targets(skeleton(config))]
    except AttributeError:  # transformers ties the head to embeddings that have another name in this language model
        found = []
    text: Any = config.get_text_config()
    missing = [name for name in LORA_LAYERS if found.count(name) != text.num_hidden_layers]
    if missing:
        raise CheckpointError(
            f"{where}: its language model ({text.model_type}) lacks the LoRA targets {', '.join(missing)} in some of "
            f"its {text.num_hidden_layers} layers; give an InternVL whose language model is Qwen2, Qwen3 or Llama "
            "(all of InternVL 2.5 and 3 are)"
        )


# ---- bases by hub name or folder


def read_config(base: str) -> InternVLConfig:
    """Read the configuration of a base by its folder, hub name, or `nano`.

    Raises:
        CheckpointError: unreadable, or not an HF-native InternVL; names what it is and the remedy.
    """
    try:
        record, _ = PretrainedConfig.get_config_dict(preset_path(base))
        if not record:  # transformers then reports a folder without the file
            raise FileNotFoundError("no config.json in it")
    except OSError as error:
        raise CheckpointError(
            f"{base}: can't read its configuration ({str(error).splitlines()[0]}); give a folder with config.json, or "
            "a hub name this machine can reach"
        ) from error
    kind = record.get("model_type")
    if kind == "internvl_chat":
        raise CheckpointError(
            f"{base}: this InternVL has the official layout, which needs remote code; convert it once with "
            f"jobs/convert_base.py --source {base} --output FOLDER and give that folder"
        )
    if kind != InternVLConfig.model_type:
        raise CheckpointError(f"{base}: not an InternVL but {kind}; give an HF-native InternVL, by folder or hub name")
    try:
        config = InternVLConfig.from_dict(record)
        # Before transformers 5 this key described only the language model; version 5 would tie head and embeddings.
        if "tie_word_embeddings" not in record:
            text: Any = config.text_config
            config.tie_word_embeddings = text.tie_word_embeddings
        return config
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{base}: transformers rejects its config.json ({error!r})") from error


def check_base(base: str) -> None:
    """Raise for a base that can't be trained, as far as that is known before its weights are loaded.

    A base that this machine can't read is left to the workers, which may reach a hub that it doesn't.

    Raises:
        CheckpointError: not an HF-native InternVL, or its language model lacks LoRA targets.
    """
    known = next((name for name, chosen in PRESETS.items() if chosen.base == base), None)
    try:
        config = describe(known) if known else read_config(base)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and not Path(base).is_dir():
            return
        raise
    check_lora_targets(config, base)
