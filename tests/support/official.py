"""Small random InternVL checkpoints in the official layout, with the files that vLLM needs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.families import FAMILIES, PATCH_PX, TILE_PX, WORDS, scaled_down
from ureca.nano.architecture import nano_tokenizer

# What transformers needs to read such a config.json: the checkpoints bring these two files along.
CONFIGURATION = """
from transformers import PretrainedConfig, Qwen2Config, Qwen3Config


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternLM2Config(PretrainedConfig):
    model_type = "internlm2"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    has_no_defaults_at_init = True

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        architecture = llm_config["architectures"][0]
        self.vision_config = InternVisionConfig(**vision_config)
        known = {"Qwen2ForCausalLM": Qwen2Config, "Qwen3ForCausalLM": Qwen3Config}
        self.llm_config = known.get(architecture, InternLM2Config)(**llm_config)
        super().__init__(**kwargs)

    def get_text_config(self, decoder=None, encoder=None):
        return self.llm_config
"""


def official_record(preset: str, vocab_size: int) -> dict[str, Any]:
    """config.json of the preset's official checkpoint, scaled down."""
    config = scaled_down(preset, vocab_size=vocab_size)
    vision, text = config.vision_config, config.text_config
    internlm2 = text.model_type == "llama"
    rope = dict(text.rope_parameters)
    shared = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
        "max_position_embeddings rms_norm_eps initializer_range tie_word_embeddings bos_token_id eos_token_id"
    )
    llm = {
        **{key: getattr(text, key) for key in shared.split()},
        "architectures": ["InternLM2ForCausalLM" if internlm2 else f"{text.model_type.capitalize()}ForCausalLM"],
        "model_type": "internlm2" if internlm2 else text.model_type,
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": {"type": rope.pop("rope_type"), **rope} if text.model_type != "qwen3" else None,
        "torch_dtype": "float32",
        "use_cache": True,
        **({"bias": False} if internlm2 else {"use_sliding_window": False, "sliding_window": None}),
        **({"head_dim": text.head_dim, "attention_bias": False} if text.model_type == "qwen3" else {}),
    }
    shared = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act norm_type layer_norm_eps "
        "num_channels initializer_range"
    )
    tower = {
        **{key: getattr(vision, key) for key in shared.split()},
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
        "qkv_bias": vision.attention_bias,
        "qk_normalization": vision.use_qk_norm,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "initializer_factor": 0.1,
        "use_flash_attn": False,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE_PX,
        "llm_config": llm,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "float32",
        "use_thumbnail": True,
        "vision_config": tower,
    }


def official_weights(preset: str, vocab_size: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under their official names; attention's fused ones drawn as they are stored."""
    record = official_record(preset, vocab_size)
    vision, llm = record["vision_config"], record["llm_config"]
    torch.manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns) * columns**-0.5

    def vector(size: int, around: float = 0.0) -> Tensor:
        return around + 0.1 * torch.randn(size)

    width, inner = vision["hidden_size"], vision["intermediate_size"]
    rms = vision["norm_type"] == "rms_norm"
    side = TILE_PX // PATCH_PX
    weights = {
        "vision_model.embeddings.class_embedding": torch.randn(1, 1, width),
        "vision_model.embeddings.position_embedding": 0.3 * torch.randn(1, side**2 + 1, width),
        "vision_model.embeddings.patch_embedding.weight": 0.02 * torch.randn(width, 3, PATCH_PX, PATCH_PX),
        "vision_model.embeddings.patch_embedding.bias": vector(width),
    }
    for layer in range(vision["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{layer}."
        weights |= {
            at + "attn.qkv.weight": matrix(3 * width, width),
            at + "attn.proj.weight": matrix(width, width),
            at + "attn.proj.bias": vector(width),
            at + "mlp.fc1.weight": matrix(inner, width),
            at + "mlp.fc1.bias": vector(inner),
            at + "mlp.fc2.weight": matrix(width, inner),
            at + "mlp.fc2.bias": vector(width),
            at + "norm1.weight": vector(width, 1),
            at + "norm2.weight": vector(width, 1),
            at + "ls1": vector(width, 0.5),
            at + "ls2": vector(width, 0.5),
        }
        if vision["qkv_bias"]:
            weights[at + "attn.qkv.bias"] = vector(3 * width)
        if vision["qk_normalization"]:
            weights |= {at + f"attn.{part}_norm.weight": vector(width, 1) for part in "qk"}
        if not rms:
            weights |= {at + f"norm{number}.bias": vector(width) for number in "12"}
    wide, width = 4 * width, llm["hidden_size"]
    weights |= {
        "mlp1.0.weight": vector(wide, 1),
        "mlp1.0.bias": vector(wide),
        "mlp1.1.weight": matrix(width, wide),
        "mlp1.1.bias": vector(width),
        "mlp1.3.weight": matrix(width, width),
        "mlp1.3.bias": vector(width),
    }
    internlm2 = llm["model_type"] == "internlm2"
    inner, heads, kv_heads = llm["intermediate_size"], llm["num_attention_heads"], llm["num_key_value_heads"]
    head = llm.get("head_dim", width // heads)
    names = (
        {"embed": "tok_embeddings", "o": "attention.wo", "before": "attention_norm", "after": "ffn_norm"}
        if internlm2
        else {"embed": "embed_tokens", "o": "self_attn.o_proj", "before": "input_layernorm"}
        | {"after": "post_attention_layernorm"}
    )
    gate, down, up = (
        [f"feed_forward.w{number}" for number in "123"]
        if internlm2
        else [f"mlp.{name}_proj" for name in ("gate", "down", "up")]
    )
    weights |= {
        f"language_model.model.{names['embed']}.weight": torch.randn(vocab_size, width) * 0.5,
        "language_model.model.norm.weight": vector(width, 1),
        f"language_model.{'output' if internlm2 else 'lm_head'}.weight": matrix(vocab_size, width),
    }
    for layer in range(llm["num_hidden_layers"]):
        at = f"language_model.model.layers.{layer}."
        weights |= {
            at + f"{names['o']}.weight": matrix(width, heads * head),
            at + f"{gate}.weight": matrix(inner, width),
            at + f"{up}.weight": matrix(inner, width),
            at + f"{down}.weight": matrix(width, inner),
            at + f"{names['before']}.weight": vector(width, 1),
            at + f"{names['after']}.weight": vector(width, 1),
        }
        if internlm2:
            weights[at + "attention.wqkv.weight"] = 2 * matrix((heads + 2 * kv_heads) * head, width)
            continue
        for part, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            weights[at + f"self_attn.{part}_proj.weight"] = 2 * matrix(rows * head, width)
            if llm["model_type"] == "qwen2":
                weights[at + f"self_attn.{part}_proj.bias"] = vector(rows * head)
            elif part != "v":
                weights[at + f"self_attn.{part}_norm.weight"] = vector(head, 1)
    return weights


def write_official(folder: Path, family: str, *, shards: int = 3, dtype: torch.dtype = torch.float32) -> Path:
    """A whole checkpoint in several files: configuration, weights, tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = nano_tokenizer(WORDS * 50, num_words=344)
    record = official_record(FAMILIES[family], vocab_size=len(tokenizer))
    (folder / "config.json").write_text(json.dumps(record, indent=1))
    (folder / "configuration_internvl_chat.py").write_text(CONFIGURATION)
    weights = {
        name: value.to(dtype).contiguous()
        for name, value in official_weights(FAMILIES[family], vocab_size=len(tokenizer)).items()
    }
    write_shards(folder, weights, shards)
    tokenizer.save_pretrained(folder)
    return folder


def write_shards(folder: Path, weights: dict[str, Tensor], shards: int) -> None:
    names = list(weights)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]  # a layer's weights lie in several files, as they do on the hub
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
