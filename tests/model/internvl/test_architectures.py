"""Every preset as it really is built, on the meta device: sizes, shapes, token counts, where LoRA goes."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from support.families import drawn_weights, scaled_down
from support.paths import ROOT
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

from ureca.errors import CheckpointError, ConfigError
from ureca.model.captioner import load_base
from ureca.model.internvl.architectures import (
    LORA_LAYERS,
    LORA_TARGETS,
    check_base,
    describe,
    lora_parameter_count,
    lora_targets,
    parameter_counts,
    read_config,
    skeleton,
)
from ureca.model.internvl.presets import PRESETS
from ureca.model.processor import CaptionerProcessor
from ureca.nano.architecture import nano_processor, nano_tokenizer

# Billions. Whole checkpoints as the hub counts their tensors (three digits); the language model as its authors
# publish it, without embeddings for Qwen2.5 (one percent: their figures are rounded), with them for InternLM2.5.
PUBLISHED = {
    "internvl2.5-1b": (0.938, 0.36),
    "internvl2.5-2b": (2.21, 1.89),
    "internvl2.5-4b": (3.71, 2.77),
    "internvl2.5-8b": (8.08, 7.74),
    "internvl2.5-26b": (25.5, 19.86),
    "internvl2.5-38b": (38.4, 31.0),
    "internvl2.5-78b": (78.4, 70.0),
    "internvl3-1b": (0.938, 0.36),
    "internvl3-2b": (2.09, 1.31),
    "internvl3-8b": (7.94, 6.53),
    "internvl3-14b": (15.1, 13.1),
    "internvl3-38b": (38.4, 31.0),
    "internvl3-78b": (78.4, 70.0),
    "internvl3.5-1b": (1.1, 0.44),
    "internvl3.5-2b": (2.3, 1.41),
    "internvl3.5-4b": (4.7, 3.63),
    "internvl3.5-8b": (8.5, 6.95),
    "internvl3.5-14b": (15.1, 13.2),
    "internvl3.5-38b": (38.4, 31.2),
}
VISION_MILLIONS = {1024: 304.01, 3200: 5540.0}  # InternViT-300M and InternViT-6B


@pytest.fixture(scope="module", params=PUBLISHED)
def model(request: pytest.FixtureRequest) -> InternVLForConditionalGeneration:
    built = skeleton(describe(request.param))
    built.preset = request.param
    return built


def test_every_preset_has_its_architecture() -> None:
    assert set(PUBLISHED) == set(PRESETS) - {"nano"}
    with pytest.raises(ConfigError, match="'internvl9'"):
        describe("internvl9")


def test_parameters_are_as_published(model: InternVLForConditionalGeneration) -> None:
    counts = parameter_counts(model)
    whole, language = PUBLISHED[model.preset]
    assert round(counts.total / 1e9, len(str(whole).partition(".")[2])) == whole
    vision, text = model.config.vision_config, model.config.text_config
    assert counts.vision_tower / 1e6 == pytest.approx(VISION_MILLIONS[vision.hidden_size], rel=1e-3)
    published_part = counts.layers if text.model_type.startswith("qwen") else counts.language_model
    assert published_part / 1e9 == pytest.approx(language, rel=0.01)
    wide, width = 4 * vision.hidden_size, text.hidden_size  # pixel shuffle puts four patches into one
    assert counts.projector == 2 * wide + (wide + 1) * width + (width + 1) * width
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())


def test_an_image_becomes_256_tokens_a_tile(model: InternVLForConditionalGeneration) -> None:
    pixels = torch.empty(7, 3, 448, 448, device="meta")
    features = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    assert features.shape == (7, 256, model.config.text_config.hidden_size)
    assert model.config.image_seq_length == 256


def test_lora_goes_on_every_layer_of_the_language_model_and_nowhere_else(
    model: InternVLForConditionalGeneration,
) -> None:
    layers = model.config.text_config.num_hidden_layers
    names = set(lora_targets(model))
    assert names == {
        f"model.language_model.layers.{layer}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}"
        for layer in range(layers)
        for name in LORA_LAYERS
    }
    same_names = [name for name, _ in model.named_modules() if name.endswith(LORA_LAYERS) and "vision" in name]
    assert len(same_names) == 3 * model.config.vision_config.num_hidden_layers


@pytest.mark.parametrize(
    ("name", "rank", "millions", "fused_millions"),
    [
        # of the un-fused layers of HF-native form, and of the authors' form, where wqkv is one layer
        ("internvl2.5-1b", 16, 8.8, None),
        ("internvl2.5-2b", 16, 17.3, 15.7),
        ("internvl2.5-4b", 16, 29.9, None),
        ("internvl2.5-8b", 16, 41.9, 37.7),
        ("internvl2.5-1b", 128, 70, None),
        ("internvl2.5-2b", 128, 138, 126),
        ("internvl2.5-4b", 128, 240, None),
        ("internvl2.5-8b", 128, 335, 302),
    ],
)
def test_lora_is_as_large_as_published(name: str, rank: int, millions: float, fused_millions: float | None) -> None:
    model = skeleton(describe(name))
    text = model.config.text_config
    count = lora_parameter_count(model, rank)
    assert count / 1e6 == pytest.approx(millions, rel=0.006)
    if fused_millions is not None:
        # one matrix of `rank` rows reads the layer's input for query, key and value instead of three
        saved = 2 * rank * text.hidden_size * text.num_hidden_layers
        assert (count - saved) / 1e6 == pytest.approx(fused_millions, rel=0.006)
    with torch.device("meta"):
        tuned = get_peft_model(model, LoraConfig(r=rank, target_modules=LORA_TARGETS))
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == count
    hit = [module for module in tuned.modules() if isinstance(module, BaseTunerLayer)]
    assert len(hit) == 7 * text.num_hidden_layers


@pytest.mark.parametrize(
    ("width", "height", "at_6", "at_12"),
    [(2250, 1500, 7, 7), (2000, 1500, 7, 13), (2667, 1500, 3, 9), (1500, 1500, 5, 10), (400, 400, 1, 1)],
)
def test_tokens_of_an_image_follow_its_tiles(width: int, height: int, at_6: int, at_12: int) -> None:
    hf = nano_processor(nano_tokenizer(["a red part"] * 20, num_words=300))
    hf.image_processor = GotOcr2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=False)
    for limit, tiles in ((6, at_6), (12, at_12)):
        processor = CaptionerProcessor(hf, tile_limit=limit)
        columns, rows = processor.grid((height, width))
        assert columns * rows + (columns * rows > 1) == tiles
        prefix = processor.prefix_ids(tiles)
        assert prefix.count(processor.image_token_id) == 256 * tiles
        assert len(prefix) - 256 * tiles == len(processor.prefix_ids(0))


def write_config(folder: Path, **changes: object) -> str:
    folder.mkdir()
    record = describe("internvl2.5-1b").to_dict() | changes
    (folder / "config.json").write_text(json.dumps(record))
    return str(folder)


def test_a_base_is_checked_before_its_weights_are_loaded(tmp_path: Path) -> None:
    check_base("nano")
    for chosen in PRESETS.values():
        check_base(chosen.base)
    check_base(write_config(tmp_path / "good"))
    check_base("someone/InternVL-that-no-hub-has")  # a worker may reach what this machine does not


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_vl"}, "InternVL.*qwen2_vl;.*HF-native InternVL"),
        ({"model_type": "internvl_chat"}, r"jobs/convert_base\.py --source.*--output FOLDER"),
        (
            {"text_config": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2}},
            r"\(gpt2\).*q_proj, k_proj,.*InternVL.*Qwen2",
        ),
        (
            {
                "text_config": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2},
                "tie_word_embeddings": True,
            },
            r"\(gpt2\).*q_proj, k_proj,.*InternVL.*Qwen2",
        ),
    ],
)
def test_a_base_that_can_not_be_trained_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_base(write_config(tmp_path / "bad", **changes))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="configuration"):
        check_base(str(tmp_path))


def test_the_table_in_the_docs_is_what_is_built() -> None:
    text = (ROOT / "docs" / "bases.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `int")]
    assert [row[0].strip("`") for row in rows] == list(PUBLISHED)
    for name, _, language, *figures in rows:
        model = skeleton(describe(name.strip("`")))
        counts, config = parameter_counts(model), model.config.text_config
        assert language.endswith(f"{config.hidden_size} x {config.num_hidden_layers}")
        millions = [counts.vision_tower, counts.projector, counts.language_model]
        lora = [lora_parameter_count(model, rank) for rank in (16, 128)]
        published = PUBLISHED[name.strip("`")][0]
        assert figures == [
            *(f"{count / 1e6:,.1f}" for count in millions),
            f"{counts.total / 1e9:.3f}",
            f"{published:.3g}",
            *(f"{count / 1e6:,.1f}" for count in lora),
        ]


def test_a_head_of_its_own_is_kept_where_only_the_language_model_s_part_says_so(tmp_path: Path) -> None:
    """As the hub's -hf checkpoints are, which transformers before 5 wrote."""
    model = drawn_weights(scaled_down("internvl3-1b", vocab_size=300))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    assert record.pop("tie_word_embeddings") is False
    path.write_text(json.dumps(record))
    assert parameter_counts(skeleton(read_config(str(tmp_path)))) == parameter_counts(model)
    loaded = load_base(str(tmp_path), torch.float32)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.get_input_embeddings().weight)
    assert loaded.config.tie_word_embeddings is False
