"""Official InternVL checkpoints become HF-native folders: every weight in its place, every fault named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from support.families import WORDS
from support.official import write_official, write_shards
from transformers import AutoProcessor, InternVLForConditionalGeneration, Qwen2Tokenizer

from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner
from ureca.model.internvl.architectures import check_base
from ureca.model.internvl.convert import convert_base
from ureca.model.internvl.official_layout import _internlm2_tokenizer
from ureca.model.processor import CaptionerProcessor
from ureca.nano.architecture import nano_tokenizer

SHARD_BYTES = 300_000


def source_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.fixture(scope="module", params=["qwen2", "llama", "qwen2_6b_tower"])
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp(request.param) / "official", request.param)


@pytest.fixture(scope="module")
def one_official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("one") / "official", "llama")


def test_every_weight_arrives_in_its_place(official: Path, tmp_path: Path) -> None:
    before = source_weights(official)
    folder = convert_base(official, tmp_path / "native", shard_bytes=SHARD_BYTES)
    model, report = InternVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    after = model.state_dict()
    assert sum(value.numel() for value in after.values()) == sum(value.numel() for value in before.values())
    tower = "model.vision_tower.encoder.layer.1."
    for part, rows in zip("qkv", before["vision_model.encoder.layers.1.attn.qkv.weight"].split(64), strict=True):
        assert torch.equal(after[f"{tower}attention.{part}_proj.weight"], rows)
    assert torch.equal(after[tower + "lambda_2"], before["vision_model.encoder.layers.1.ls2"])
    assert torch.equal(after["model.multi_modal_projector.linear_2.weight"], before["mlp1.3.weight"])
    text = model.config.text_config
    if text.model_type == "qwen2":
        key = "layers.1.self_attn.k_proj.bias"
        assert torch.equal(after["model.language_model." + key], before["language_model.model." + key])
        return
    fused = before["language_model.model.layers.1.attention.wqkv.weight"]
    expected: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
    heads = iter(fused.split(text.head_dim))  # two queries, their key, their value; then the next key head's
    for _ in range(text.num_key_value_heads):
        for part in "qqkv":
            expected[part].append(next(heads))
    for part, rows in expected.items():
        assert torch.equal(after[f"model.language_model.layers.1.self_attn.{part}_proj.weight"], torch.cat(rows))
    assert torch.equal(after["lm_head.weight"], before["language_model.output.weight"])
    gate, down = (f"language_model.model.layers.0.feed_forward.w{number}.weight" for number in (1, 2))
    assert torch.equal(after["model.language_model.layers.0.mlp.gate_proj.weight"], before[gate])
    assert torch.equal(after["model.language_model.layers.0.mlp.down_proj.weight"], before[down])


def test_it_is_a_base_to_train_on(official: Path, tmp_path: Path) -> None:
    folder = str(convert_base(official, tmp_path / "native"))
    check_base(folder)
    captioner = Captioner.from_base(folder, tile_limit=3)
    assert captioner.processor.image_processor.max_patches == 3
    assert AutoProcessor.from_pretrained(folder).image_processor.max_patches == 6  # max_dynamic_patch
    generation = json.loads((tmp_path / "native" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == captioner.processor.end_token_id


def test_files_of_weights_keep_to_their_limit_and_type(tmp_path: Path) -> None:
    source = write_official(tmp_path / "official", "qwen2", dtype=torch.bfloat16)
    seen: list[tuple[int, int]] = []
    convert_base(
        source, tmp_path / "native", shard_bytes=SHARD_BYTES, progress=lambda done, total: seen.append((done, total))
    )
    count = len(source_weights(source))
    assert seen == [(number + 1, count) for number in range(count)]
    files = sorted((tmp_path / "native").glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "native" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    for file in files:
        weights = load_file(file)
        assert {value.dtype for value in weights.values()} == {torch.bfloat16}
        assert len(weights) == 1 or sum(value.nbytes for value in weights.values()) <= SHARD_BYTES
    assert json.loads((tmp_path / "native" / "config.json").read_text())["dtype"] == "bfloat16"
    assert not list(tmp_path.glob(".native*"))


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The checkpoint with its weights (or, under "config", its configuration) changed."""
    shutil.copytree(source, target)
    contents: dict[str, Any] = source_weights(target)
    contents["config"] = json.loads((target / "config.json").read_text())
    change(contents)
    (target / "config.json").write_text(json.dumps(contents.pop("config")))
    for file in target.glob("*.safetensors"):
        file.unlink()
    write_shards(target, contents, shards=2)
    return target


FAULTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.pop("mlp1.1.bias"), r"projector\.linear_1\.bias"),
    (lambda c: c.update({"qllama.query": torch.ones(2)}), r"qllama\.query"),
    (lambda c: c.update({"mlp1.1.bias": torch.ones(7)}), r"mlp1\.1\.bias \[7"),
    (lambda c: c["config"].update(select_layer=-4), r"select_layer=-4"),
    (lambda c: c["config"].update(ps_version="v1", use_thumbnail=False), r"ps_version='v1', use_thumbnail=False"),
    (lambda c: c["config"]["vision_config"].pop("norm_type"), r"config\.json: .*'norm_type'"),
    (
        lambda c: c["config"]["llm_config"].update(architectures=["Phi3ForCausalLM"]),
        r"Phi3ForCausalLM; .*Qwen2ForCausalLM, Qwen3ForCausalLM, InternLM2ForCausalLM",
    ),
    (lambda c: c["config"].update(model_type="internvl"), r"is already HF-native; pass it to --base"),
    (lambda c: c["config"].update(model_type="llava"), r"llava"),
    (lambda c: c["config"]["llm_config"].update(vocab_size=3), r"tokenizer has <IMG_CONTEXT> beyond the 3 embeddings"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=range(len(FAULTS)))
def test_what_is_wrong_is_named_before_anything_is_written(
    one_official: Path, change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_base(rewritten(one_official, tmp_path / "wrong", change), tmp_path / "native")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong"]


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    source = write_official(tmp_path / "official", "qwen2")
    for name, message in (
        ("model-00002-of-00003.safetensors", r"model-00002-of-00003\.safetensors"),
        ("model.safetensors.index.json", r"neither model\.safetensors nor model\.safetensors\.index\.json"),
        ("tokenizer.json", r"needs tokenizer\.json"),
        ("config.json", r"no config\.json in it"),
    ):
        (source / name).unlink()
        with pytest.raises(CheckpointError, match=message):
            convert_base(source, tmp_path / "native")


def test_a_folder_that_is_there_is_left_alone(one_official: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="--output"):
        convert_base(one_official, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- tokenizers, in the forms in which they are published


def test_qwen2_s_vocabulary_is_taken_as_it_is(tmp_path: Path) -> None:
    source = write_official(tmp_path / "official", "qwen2")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    inner = json.loads(nano_tokenizer(WORDS * 50, num_words=344).backend_tokenizer.to_str())
    special = {entry["content"]: entry["id"] for entry in inner["added_tokens"] if entry["special"]}
    words = {word: number for word, number in inner["model"]["vocab"].items() if word not in special}
    (source / "vocab.json").write_text(json.dumps({**words, **special}))
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(p) for p in inner["model"]["merges"])]))
    decoder = {
        number: {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        | {"single_word": False}
        for token, number in special.items()
    }
    (source / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "added_tokens_decoder": decoder,
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"],
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
            }
        )
    )
    converted = AutoProcessor.from_pretrained(convert_base(source, tmp_path / "native")).tokenizer
    published = Qwen2Tokenizer.from_pretrained(source)
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>\na  red round part, it's left.<|im_end|>\n"
    assert converted(text)["input_ids"] == published(text)["input_ids"]
    assert {token: converted.convert_tokens_to_ids(token) for token in special} == special
    assert converted.pad_token == "<|endoftext|>"  # what stands at mask positions in vLLM


@pytest.fixture(scope="module")
def internlm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a SentencePiece vocabulary whose unused tokens have other names outside of it."""
    folder = tmp_path_factory.mktemp("internlm2") / "official"
    write_official(folder, "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "corpus.txt").write_text("\n".join([*WORDS, "part\tof  two"] * 50))
    unused = [f"[UNUSED_TOKEN_{number}]" for number in range(2)]
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=unused,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    names = dict(zip((vocabulary.piece_to_id(piece) for piece in unused), ("<|im_end|>", "<|im_start|>"), strict=True))
    beyond = ["<img>", "</img>", "<IMG_CONTEXT>"]
    names |= {vocabulary.vocab_size() + number: token for number, token in enumerate(beyond)}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {number: {"content": token} for number, token in names.items()}})
    )
    return folder


def test_internlm2_s_vocabulary_splits_text_as_sentencepiece_does(internlm2: Path) -> None:
    converted = _internlm2_tokenizer(internlm2)
    published = sentencepiece.SentencePieceProcessor(model_file=str(internlm2 / "tokenizer.model"))
    for text in (*WORDS, "a  red\tpart", "describe this\nregion", "Zürich 中文", " leading", ""):
        assert converted(text, add_special_tokens=False)["input_ids"] == published.encode(text), text
        assert converted.decode(published.encode(text)) == text
    assert converted("a red part")["input_ids"][0] == converted.bos_token_id
    ids = converted("a<|im_end|>\n<IMG_CONTEXT>", add_special_tokens=False)["input_ids"]
    size = published.vocab_size()
    end = published.piece_to_id("[UNUSED_TOKEN_0]")
    assert ids == [*published.encode("a"), end, *published.encode("\n"), size + 2]


def test_a_prompt_of_internlm2_begins_as_transformers_begins_it(internlm2: Path, tmp_path: Path) -> None:
    folder = convert_base(internlm2, tmp_path / "native")
    processor = CaptionerProcessor.from_pretrained(str(folder), tile_limit=6)
    image = torch.zeros(230, 460, 3, dtype=torch.uint8).numpy()
    content = [{"type": "image", "image": image}, {"type": "text", "text": "\nname it."}]
    rendered = processor.hf.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    prefix = processor.prefix_ids(len(processor.image_inputs(image)))
    assert prefix[0] == processor.tokenizer.bos_token_id
    assert list(rendered["input_ids"][0]) == prefix + processor.branch_ids("name it.")


def test_a_token_that_would_get_another_id_is_named(internlm2: Path, tmp_path: Path) -> None:
    shutil.copytree(internlm2, tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["9000"] = {"content": "<box>"}
    (tmp_path / "wrong" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="<box>=9000"):
        convert_base(tmp_path / "wrong", tmp_path / "native")


def test_weights_in_one_file_are_read_too(tmp_path: Path) -> None:
    source = write_official(tmp_path / "official", "qwen2")
    weights = source_weights(source)
    for file in source.glob("model*"):
        file.unlink()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    convert_base(source, tmp_path / "native")
    assert (tmp_path / "native" / "model.safetensors").is_file()
