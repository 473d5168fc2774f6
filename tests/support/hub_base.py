"""Base folders as OpenGVLab's `-hf` repositories on the hub: their files and flags, small random weights.

Source: transformers' convert_internvl_weights_to_hf.py, which made those repositories. Unlike folders written by this
package: crop_to_patches is false, processor settings are spread over several files, bfloat16 weights are sharded.
"""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from support.families import FAMILIES, IMAGE_TOKENS, IMAGENET, TILE_PX, WORDS, drawn_weights, scaled_down

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
IMAGE_TOKENS_OF_TEXT = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
ROLES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def write_hub_base(folder: Path, family: str, *, tied: bool = False) -> Path:
    """Write a base of one of FAMILIES into `folder`; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    llama = family.startswith("llama")
    tokenizer = _tokenizer(llama)
    vocab = tokenizer.get_vocab_size()
    ids = {name: tokenizer.token_to_id(name) for name in ("<IMG_CONTEXT>", "<|im_end|>", "</s>", "<|endoftext|>")}
    config = scaled_down(FAMILIES[family], vocab_size=vocab, image_token_id=ids["<IMG_CONTEXT>"], tied=tied)
    config.text_config.bos_token_id = 1 if llama else ids["<|endoftext|>"]
    config.text_config.eos_token_id = ids["</s>"] if llama else ids["<|im_end|>"]
    config.text_config.pad_token_id = ids["</s>"] if llama else ids["<|endoftext|>"]
    model = drawn_weights(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.save_pretrained(folder, max_shard_size="300KB")
    assert (folder / "model.safetensors.index.json").is_file(), "one shard only: lower max_shard_size"
    _write_tokenizer(tokenizer, folder, llama=llama)
    size = {"height": TILE_PX, "width": TILE_PX}
    image_processor = {
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "GotOcr2ImageProcessorFast",
        **IMAGENET,
        "max_patches": 12,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": size,
    }
    video_processor = {
        **{
            name: image_processor[name]
            for name in ("do_normalize", "do_rescale", "do_resize", "image_mean", "image_std")
        },
        "video_processor_type": "InternVLVideoProcessor",
        "processor_class": "InternVLProcessor",
        "size": size,
    }
    _write(folder / "preprocessor_config.json", image_processor)
    _write(folder / "video_preprocessor_config.json", video_processor)
    _write(folder / "processor_config.json", {"image_seq_length": IMAGE_TOKENS, "processor_class": "InternVLProcessor"})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def _tokenizer(llama: bool) -> Tokenizer:
    """Byte-level BPE as Qwen2's, or BPE with byte fallback and a first token as InternLM2's in Llama's form."""
    corpus = [*WORDS, "user assistant describe name what is in the picture"] * 50
    controls = ["<|im_start|>", "<|im_end|>"]
    if llama:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = []
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 400,
        special_tokens=special,
        initial_alphabet=[] if llama else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if llama:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    else:
        controls = ["<|endoftext|>", *controls]
    added = [AddedToken(name, special=True, normalized=False) for name in [*controls, *IMAGE_TOKENS_OF_TEXT, "<video>"]]
    tokenizer.add_tokens(added)
    return tokenizer


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, *, llama: bool) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {str(number): token for number, token in sorted(tokenizer.get_added_tokens_decoder().items())}
    end, pad = ("</s>", "</s>") if llama else ("<|im_end|>", "<|endoftext|>")
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": llama,
            "added_tokens_decoder": {
                number: {"content": token.content, "special": token.special, "normalized": token.normalized}
                for number, token in added.items()
            },
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *IMAGE_TOKENS_OF_TEXT],
            **({"bos_token": "<s>", "unk_token": "<unk>", "legacy": False} if llama else {"bos_token": None}),
            "eos_token": end,
            "pad_token": pad,
            "extra_special_tokens": ROLES,
            "model_max_length": 8192,
            "processor_class": "InternVLProcessor",
            "return_token_type_ids": False,
            "tokenizer_class": "PreTrainedTokenizerFast" if llama else "Qwen2Tokenizer",
            **ROLES,
        },
    )
    _write(folder / "special_tokens_map.json", {**ROLES, "eos_token": end, "pad_token": pad})
    _write(folder / "added_tokens.json", {token.content: int(number) for number, token in added.items()})


def _write(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n")
