"""The throughput panel: what it counts of a packed batch, and that its shares are shares of the right thing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ureca.accelerators import ACCELERATORS
from ureca.model import Captioner, Example, PackedBatch, RegionExample, pack
from ureca.model.costs import Branch, Counts, Learns, packed_counts, total, training_flops
from ureca.model.packing import IGNORED
from ureca.regions.rle import box_to_rle
from ureca.training.throughput import Throughput, measured_flops, peak_flops, positions_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def captioner(tiny_base: Path) -> Captioner:
    return Captioner.from_base(str(tiny_base), tile_limit=1, tokens_per_tile=4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def example(*captions: str) -> Example:
    regions = tuple(
        RegionExample(box_to_rle((5 * n, 5, 5 * n + 30, 60), (64, 96)), "name this region.", caption)
        for n, caption in enumerate(captions)
    )
    return Example(np.zeros((64, 96, 3), np.uint8), regions)


def packed(captioner: Captioner, *examples: Example) -> PackedBatch:
    return pack(examples, captioner.processor, **captioner.pack_options())


def by_hand(captioner: Captioner, item: Example) -> Counts:
    """What the formulas' own constructor says of one image."""
    processor = captioner.processor
    branches = []
    for region in item.regions:
        caption = len(processor.caption_ids(region.caption))
        branches.append(Branch(4 + 2 + len(processor.branch_ids(region.query)) + caption, caption, 1))
    return packed_counts(1, len(processor.prefix_ids(1)), branches)


def test_work_of_a_batch_is_the_sum_of_its_images(captioner: Captioner) -> None:
    few, many = example("a red box"), example("the blue box", "a green box, long, long", "a box")
    assert packed(captioner, few, many).counts == by_hand(captioner, few) + by_hand(captioner, many)


def test_kept_image_tokens_cost_no_vision_tower(captioner: Captioner) -> None:
    item = example("a red box")
    tokens = captioner.image_features(captioner.processor.image_inputs(item.image))
    kept = packed(captioner, Example(tokens, item.regions)).counts
    assert kept.tiles == 0
    assert kept.prefix == by_hand(captioner, item).prefix


def test_positions_count_every_place_and_every_token(captioner: Captioner) -> None:
    batch = packed(captioner, example("a red box"), example("the blue box", "a box"))
    found = positions_of(batch)
    assert found.all == batch.prefix_ids.numel() + batch.input_ids.numel()
    work = batch.counts
    assert found.filled == work.prefix + work.branch
    assert 0 < int((batch.labels != IGNORED).sum()) < found.filled == found.all


@pytest.mark.usefixtures("alone")
def test_the_panel_is_of_one_step_alone(captioner: Captioner) -> None:
    learns = Learns(mask_encoder=True)
    panel = Throughput(captioner, learns=learns, peak=1e12, device=CPU)
    batch = packed(captioner, example("a red box"), example("the blue box", "a box"))
    panel.saw(batch)
    panel.saw(batch)
    first = panel.figures(seconds=0.5, regions=6, data_wait=0.1)
    flops = 2 * total(training_flops(captioner.base.config, captioner.config.mask, batch.counts, learns))
    assert first["mfu"] == pytest.approx(flops / 0.5 / 1e12, abs=1e-4)
    assert first["regions_per_second"] == 12.0
    assert first["tokens_per_second"] == pytest.approx(2 * positions_of(batch).filled / 0.5, abs=0.1)
    assert first["padding_share"] == pytest.approx(1 - positions_of(batch).filled / positions_of(batch).all, abs=1e-4)
    assert first["data_wait_share"] == pytest.approx(0.2)
    panel.saw(batch)
    second = panel.figures(seconds=0.5, regions=3, data_wait=0.0)
    assert second["tokens_per_second"] == pytest.approx(first["tokens_per_second"] / 2, abs=0.1)


def test_a_cpu_s_peak_is_measured_once_or_given() -> None:
    assert peak_flops(CPU, bf16=False, given_tflops=2.5) == 2.5e12
    assert 1e8 < measured_flops(CPU, torch.float32) < 1e14


@pytest.mark.parametrize("bf16", [True, False])
def test_a_known_gpu_s_peak_is_its_maker_s(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    known = ACCELERATORS["H100-80GB"]
    found = peak_flops(torch.device("cuda"), bf16=bf16, given_tflops=None)
    assert found == (known.bf16_flops if bf16 else known.fp32_flops)
