"""Prompts for vLLM, without vLLM."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ureca.engine.prompts import PromptBuilder, check_rows
from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner
from ureca.regions.rle import box_to_rle

WIDE = (256, 700)  # 3 x 1 tiles and a thumbnail
SQUARE = (256, 256)  # 1 tile


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def builder(tiny_export):
    return PromptBuilder(tiny_export)


@pytest.mark.parametrize("size", [WIDE, SQUARE])
def test_mask_rows_are_the_captioner_s_mask_tokens(tiny_export, builder, size):
    rles = [box_to_rle(box, size) for box in ((0, 0, 30, 30), (100, 20, 250, 200))]
    captioner = Captioner.from_pretrained(tiny_export)
    with torch.no_grad():
        expected = captioner.mask_encoder([captioner.processor.mask_tiles(rle) for rle in rles])
    prompts = builder.regions(rles, ["a", "b"])
    for prompt, rows in zip(prompts, expected, strict=True):
        torch.testing.assert_close(prompt.rows, rows, rtol=0, atol=0)


@pytest.mark.parametrize("size", [WIDE, SQUARE])
def test_token_ids_are_prefix_then_mask_rows_then_branch(builder, size):
    processor = builder.processor
    image = builder.image(picture(size))
    num_tiles = len(processor.image_inputs(image.image))
    query = processor.query("unique")
    with_mask, without = builder.regions([box_to_rle((0, 0, 30, 30), size), None], [query, query])
    prefix, branch = processor.prefix_ids(num_tiles), processor.branch_ids(query)
    assert builder.placeholder_id not in prefix + branch
    assert builder.token_ids(image, with_mask) == prefix + [builder.placeholder_id] * len(with_mask.rows) + branch
    assert builder.token_ids(image, without) == prefix + branch


def test_sent_ids_hold_one_token_for_the_image_and_one_for_the_mask(builder):
    image = builder.image(picture(WIDE))
    region, none = builder.regions([box_to_rle((0, 0, 30, 30), WIDE), None], ["q", "q"])
    sent = builder.sent_ids(image, region)
    assert sent.count(builder.processor.image_token_id) == 1
    assert sent.count(builder.placeholder_id) == 1
    assert builder.placeholder_id not in builder.sent_ids(image, none)


def test_images_of_equal_bytes_and_other_shape_have_other_digests(builder):
    wide, tall = np.zeros((16, 64, 3), np.uint8), np.zeros((64, 16, 3), np.uint8)
    assert builder.image(wide).digest != builder.image(tall).digest
    assert builder.image(wide).digest == builder.image(wide.copy()).digest


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (torch.zeros(4, 63), r"\(4, 63\).*64\)"),
        (torch.zeros(0, 64), r"\(0, 64\)"),
        (torch.zeros(1, 4, 64), r"\(1, 4, 64\)"),
        (torch.zeros(4, 64, dtype=torch.int64), "torch.int64"),
        (torch.full((4, 64), float("nan")), "NaN"),
        (torch.full((4, 64), float("inf")), "NaN"),
    ],
)
def test_rows_that_would_harm_the_engine_are_refused(rows, said):
    check_rows(torch.zeros(4, 64), 64)
    with pytest.raises(CheckpointError, match=said):
        check_rows(rows, 64)


def test_a_diverged_mask_encoder_is_noticed_before_vllm(tiny_export, tmp_path):
    folder = shutil.copytree(tiny_export, tmp_path / "export")
    weights = load_file(folder / "mask_encoder.safetensors")
    weights["body.place.bias"][0] = float("nan")
    save_file(weights, folder / "mask_encoder.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        PromptBuilder(folder).regions([box_to_rle((0, 0, 30, 30), SQUARE)], ["q"])


def test_what_is_no_export_is_refused(tiny_export, tmp_path):
    with pytest.raises(CheckpointError, match=r"captioner_config\.json"):
        PromptBuilder(tmp_path)
    with pytest.raises(CheckpointError, match="serving"):
        PromptBuilder(tiny_export.parent / "model")
    folder = shutil.copytree(tiny_export, tmp_path / "mixed")
    base = json.loads((folder / "config.json").read_text())
    base["text_config"]["hidden_size"] = 96
    (folder / "config.json").write_text(json.dumps(base))
    with pytest.raises(CheckpointError, match="96.*64"):
        PromptBuilder(folder)
    shutil.copy(tiny_export / "model.safetensors", folder / "mask_encoder.safetensors")
    shutil.copy(tiny_export / "config.json", folder / "config.json")
    with pytest.raises(CheckpointError, match=r"captioner_config\.json"):
        PromptBuilder(folder)
