"""The formula of a worker's memory: its counts against real models, and that it moves the right way."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.captioners import tiny_captioner

from ureca.model.flops import Counts, branch_of, packed_counts, prefix_tokens
from ureca.model.internvl.architectures import describe
from ureca.model.mask_encoder import MaskEncoderConfig
from ureca.training.sizing.memory import Memory, Setting, Sizes, peak_memory

LORA_RANK = 8


@pytest.fixture(scope="module")
def captioner():
    return tiny_captioner(dtype=torch.float32)


def sizes_of(captioner, stage: Any, **options: Any) -> Sizes:
    return Sizes.of(captioner.base.config, captioner.config.mask, stage=stage, lora_rank=LORA_RANK, **options)


@pytest.mark.parametrize(("stage", "tuned"), [(1, False), (2, False), (2, True)])
def test_counts_are_those_of_the_model(stage, tuned):
    captioner = tiny_captioner(dtype=torch.float32)
    sizes = sizes_of(captioner, stage, tune_mask_encoder=tuned)
    if stage == 2:
        captioner.add_lora(rank=LORA_RANK)
    captioner.trainable(stage, tune_mask_encoder=tuned)
    parameters = list(captioner.parameters())
    assert sizes.trained == sum(p.numel() for p in parameters if p.requires_grad)
    assert sizes.frozen == sum(p.numel() for p in parameters if not p.requires_grad)


def test_what_autograd_keeps_of_the_mask_encoder_is_what_it_keeps():
    from ureca.training.sizing import memory

    mask = MaskEncoderConfig(kind="channels", tokens_per_tile=4, tile_px=64, hidden_size=32)
    after_conv1, after_conv2 = 4 * 32 * 32, 4 * 16 * 16
    # The input, both maps after their ReLUs (the second also flat, the same memory).
    assert memory._mask_bytes(mask, 4) == 4 * (64 * 64 + after_conv1 + after_conv2)
    assert memory._mask_bytes(mask, 2) < memory._mask_bytes(mask, 4)


def a_pass(config, images: int = 2, regions: int = 8, tiles: int = 3, caption: int = 20) -> Counts:
    branch = branch_of(mask_tiles=2, tokens_per_tile=4, query=10, caption=caption)
    counts = Counts()
    for _ in range(images):
        counts += packed_counts(tiles, prefix_tokens(config, tiles), [branch] * regions)
    return counts


def needed(captioner, stage: Any = 2, counts: Counts | None = None, **setting: Any) -> Memory:
    counts = counts or a_pass(captioner.base.config)
    return peak_memory(sizes_of(captioner, stage), counts, replace(Setting(num_workers=4), **setting), bucket=1)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"checkpointing": True}, {"checkpointing": False}),
        ({"bf16": True}, {"bf16": False}),
        ({"zero_stage": 2}, {"zero_stage": 1}),
        ({"num_workers": 8}, {"num_workers": 2}),
        ({"offload_optimizer": True}, {"offload_optimizer": False}),
    ],
)
def test_saving_saves(captioner, stage, less, more):
    assert needed(captioner, stage, **less).total <= needed(captioner, stage, **more).total


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("more", [{"images": 4}, {"regions": 64}, {"tiles": 7}, {"caption": 60}])
def test_more_in_a_pass_needs_more(captioner, stage, more):
    config = captioner.base.config
    fuller = needed(captioner, stage, a_pass(config, **more), bf16_masters=True)
    assert fuller.total > needed(captioner, stage, a_pass(config)).total


def test_optimizer_states_are_twelve_bytes_a_trained_weight_shared_out(captioner):
    trained = sizes_of(captioner, 2).trained
    for workers in (1, 4):
        assert needed(captioner, num_workers=workers).optimizer == 12 * trained / workers
    moved = needed(captioner, offload_optimizer=True)
    assert moved.optimizer == 0
    assert moved.host >= 12 * trained / 4


def test_zero_3_shares_out_the_weights_of_a_large_base():
    config = describe("internvl2.5-8b")
    mask = MaskEncoderConfig(tokens_per_tile=16, hidden_size=config.text_config.hidden_size)
    sizes = Sizes.of(config, mask, stage=2, lora_rank=128)
    counts = a_pass(config)
    whole = peak_memory(sizes, counts, Setting(num_workers=8, zero_stage=2))
    shared = peak_memory(sizes, counts, Setting(num_workers=8, zero_stage=3))
    assert whole.weights == 2 * sizes.parameters
    # An eighth, and what is gathered while it is needed: a billion weights, and 50 million ahead.
    assert 2 * sizes.parameters / 8 + 2.1e9 < shared.weights < 2 * sizes.parameters / 8 + 2.2e9
    assert sizes.trained == 335_544_320
