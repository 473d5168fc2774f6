"""The throughput panel: what it counts of a packed batch, and that its shares are shares of the right thing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ureca.hardware import ACCELERATORS
from ureca.model.captioner import Captioner
from ureca.model.flops import TrainedParts, projector_tile, total, training_flops, vision_tile
from ureca.model.packing import Example, PackedBatch, RegionExample, pack
from ureca.regions.rle import box_to_rle
from ureca.training.monitor.throughput import WORK, Throughput, measured_flops, peak_flops, trained_parts_of

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


@pytest.mark.usefixtures("alone")
def test_the_panel_is_what_the_step_needed_over_what_the_devices_could(captioner: Captioner) -> None:
    captioner.trainable(1)
    panel = Throughput(captioner, peak=1e12, device=CPU)
    batch = packed(captioner, example("a red box"), example("the blue box", "a box"))
    work = panel.work_of(batch)
    assert tuple(work) == WORK
    config, mask = captioner.base.config, captioner.config.mask
    assert work["flops"] == total(training_flops(config, mask, batch.counts, TrainedParts(mask_encoder=True)))
    assert work["sequence_tokens"] == batch.counts.tokens
    figures = panel.figures(0.5, regions=3, flops=1e11, sequence_tokens=700, places=1000, data_wait=0.1)
    assert figures["mfu"] == pytest.approx(0.2)
    assert figures["regions_per_second"] == 6
    assert figures["tokens_per_second"] == 1400
    assert figures["padding_share"] == pytest.approx(0.3)
    assert figures["data_wait_share"] == pytest.approx(0.2)


@pytest.mark.usefixtures("alone")
def test_kept_image_tokens_cost_no_vision_tower(captioner: Captioner) -> None:
    panel, item = Throughput(captioner, peak=1e12, device=CPU), example("a red box")
    seen = packed(captioner, item)
    tokens = captioner.image_features(captioner.processor.image_inputs(item.image))
    kept = packed(captioner, Example(tokens, item.regions))
    config = captioner.base.config
    saved = panel.work_of(seen)["flops"] - panel.work_of(kept)["flops"]
    assert saved == pytest.approx(vision_tile(config) + projector_tile(config))


@pytest.mark.parametrize("tune", [False, True])
def test_what_trains_is_read_off_the_captioner(tiny_base: Path, tune: bool) -> None:
    captioner = Captioner.from_base(str(tiny_base), tile_limit=1, tokens_per_tile=4)
    captioner.trainable(1)
    assert trained_parts_of(captioner) == TrainedParts(mask_encoder=True)
    captioner.add_lora(rank=3)
    captioner.trainable(2, tune_mask_encoder=tune)
    assert trained_parts_of(captioner) == TrainedParts(mask_encoder=tune, lora_rank=3)


def test_a_cpu_s_peak_is_measured_once_or_given() -> None:
    assert peak_flops(CPU, bf16=False, given_tflops=2.5) == 2.5e12
    assert 1e8 < measured_flops(CPU, torch.float32) < 1e14


@pytest.mark.parametrize("bf16", [True, False])
def test_a_known_gpu_s_peak_is_its_maker_s(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    known = ACCELERATORS["H100-80GB"]
    found = peak_flops(torch.device("cuda"), bf16=bf16, given_tflops=None)
    assert found == (known.bf16_flops if bf16 else known.fp32_flops)
