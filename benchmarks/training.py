"""Training speed of packed, single and padded sequences: regions per second at InternVL2.5-1B's shape.

    python benchmarks/training.py                      about 20 minutes of CPU, or a few of a GPU
    python benchmarks/training.py --tiles 6 --num_tokens 16 --regions 1 16

A step like stage 2's: LoRA of rank 128 on the language model, all else frozen; forward, backward and AdamW's step of
random weights on noise, image tokens not kept from before. The three ways take the same regions a step:

    packed   all regions of an image behind one prefix, as the captioner trains
    single   each region a separate sequence, with its own pass through vision tower and prefix
    padded   such sequences two at a time, padded to the longer

All use the same layers, the head at caption positions alone, and on a CPU the same attention; on a GPU single and
padded take torch's fused attention, packed FlexAttention. `single` and `padded` cost a region the same however many
an image has: they are measured on one region and on two. Next to the ratio stands its limit, the ratio of operations
(`ureca.model.flops.limit_speedup`), for the layers measured and for the whole model's.

On a CPU: one thread, its CPU seconds (what one core does, whoever else is on it), bfloat16 where the processor has it,
and a twelfth of the model: 2 of 24 layers of vision tower and language model each, and a twelfth of the vocabulary, so
that the parts keep their proportions. The ways are measured in turns, the median of the rounds counts; a long case has
fewer rounds. Prints a table and, as the last line, one JSON; writes runs/benchmarks/training.json and a plot of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ureca.hardware import capture_context, find_accelerator
from ureca.model.attention import Layout, prefix_run
from ureca.model.captioner import Captioner, CaptionerConfig
from ureca.model.flops import Branch, TrainedParts, limit_speedup, total, training_flops
from ureca.model.internvl.architectures import describe
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig
from ureca.model.packing import IGNORED, Example, PackedBatch, RegionExample, pack
from ureca.model.processor import CaptionerProcessor
from ureca.nano.architecture import nano_processor, nano_tokenizer
from ureca.regions.rle import box_to_rle
from ureca.storage.files import write_json
from ureca.viewer.plots import speedups

if TYPE_CHECKING:
    from transformers import InternVLConfig

REGIONS = (1, 4, 16, 32, 64)
TILES = {1: (448, 448), 6: (896, 1344), 12: (1344, 1792)}
"""Most tiles, and an image (height, width) that has that many, the thumbnail not counted."""
NUM_TOKENS = (8, 16)
RANK = 128
CAPTION_WORDS = 40
PADDED = 2
WORDS = ["the", "a", "red", "blue", "small", "large", "round", "part", "left", "right", "top", "wheel", "window"]
QUERY = "describe this region so that no other fits."
RESULT = Path("runs/benchmarks/training.json")


@dataclass(frozen=True)
class Bench:
    """The captioner under test and where it runs."""

    captioner: Captioner
    optimizer: torch.optim.Optimizer
    device: torch.device
    bf16: bool

    def seconds(self, loss: Callable[[], Tensor]) -> float:
        """FLOPs of a forward and a backward pass."""
        return self._timed(lambda: self._forward_backward(loss))

    def step_seconds(self) -> float:
        return self._timed(lambda: (self.optimizer.step(), self.optimizer.zero_grad(set_to_none=False)))

    def _forward_backward(self, loss: Callable[[], Tensor]) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            value = loss()
        value.backward()

    def _timed(self, work: Callable[[], object]) -> float:
        if self.device.type == "cpu":
            started = time.process_time()
            work()
            return time.process_time() - started
        torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - begun


def part_of_model(part: int) -> InternVLConfig:
    """InternVL2.5-1B with an n-th of its layers and vocabulary: each part costs an n-th of the whole's."""
    config = describe("internvl2.5-1b")
    vision, text = config.vision_config, config.text_config
    vision.num_hidden_layers //= part
    text.num_hidden_layers //= part
    text.layer_types = text.layer_types[: text.num_hidden_layers]
    text.vocab_size //= part
    return config


def new_bench(config: InternVLConfig, device: torch.device, *, bf16: bool) -> Bench:
    # After ureca.model, which makes torchvision importable with CPU torch.
    from transformers import InternVLForConditionalGeneration
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

    torch.manual_seed(0)
    tokenizer = nano_tokenizer([" ".join(WORDS), QUERY] * 20, num_words=512)
    hf = nano_processor(tokenizer)
    size = {"height": 448, "width": 448}
    hf.image_processor = GotOcr2ImageProcessor(size=size, crop_to_patches=True)  # type: ignore[attr-defined]
    config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    base = InternVLForConditionalGeneration(config).to(device)
    mask = MaskEncoderConfig(hidden_size=config.text_config.hidden_size, embedding_norm=0.02)
    settings = CaptionerConfig(base="random", base_hash="", tile_limit=1, mask=mask)
    captioner = Captioner(base, MaskEncoder(mask).to(device), settings, CaptionerProcessor(hf, tile_limit=1))
    captioner.add_lora(rank=RANK, dropout=0.0)
    captioner.to(device).trainable(2)
    if bf16:
        captioner.cast_frozen_base(torch.bfloat16)
    learning = [parameter for parameter in captioner.parameters() if parameter.requires_grad]
    return Bench(captioner, torch.optim.AdamW(learning, lr=1e-5, fused=True), device, bf16)


def set_shape(bench: Bench, tiles: int, num_tokens: int) -> None:
    """Another tile limit and another mask encoder for the same captioner."""
    captioner = bench.captioner
    mask = replace(captioner.config.mask, tokens_per_tile=num_tokens)
    captioner.mask_encoder = MaskEncoder(mask).to(bench.device).requires_grad_(False)
    captioner.processor = CaptionerProcessor(captioner.processor.hf, tile_limit=tiles)
    captioner.config = replace(captioner.config, tile_limit=tiles, mask=mask)


def drawn_example(tiles: int, num_regions: int) -> Example:
    """Noise; boxes of a tenth to a third of its sides, captions of 20 to 60 words, the first of 40."""
    rng = np.random.default_rng(num_regions)
    height, width = size = TILES[tiles]
    regions = []
    for number in range(num_regions):
        h, w = (int(side * rng.uniform(0.1, 0.33)) for side in size)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        words = CAPTION_WORDS if number == 0 else rng.integers(CAPTION_WORDS // 2, CAPTION_WORDS * 3 // 2 + 1)
        regions.append(
            RegionExample(box_to_rle((x, y, x + w, y + h), size), QUERY, " ".join(rng.choice(WORDS, size=words)))
        )
    return Example(rng.integers(0, 256, (*size, 3), dtype=np.uint8), tuple(regions))


def packed_loss(captioner: Captioner, batch: PackedBatch) -> Tensor:
    loss, count = captioner(batch)
    return loss / count


def sequences_loss(captioner: Captioner, batches: Sequence[PackedBatch]) -> Tensor:
    """BatchLoader of one region each as sequences side by side, padded on the right to the longest."""
    base, embed = captioner.base, captioner.base.get_input_embeddings()
    features = captioner.image_features(torch.cat([b.pixel_values for b in batches if b.pixel_values is not None]))
    prefixes = embed(torch.stack([batch.prefix_ids for batch in batches]))
    is_image = torch.stack([batch.prefix_ids for batch in batches]) == captioner.processor.image_token_id
    prefixes = prefixes.masked_scatter(is_image[..., None], features.to(prefixes.dtype).flatten(0, 1))
    tokens = captioner.mask_encoder([mask for batch in batches for mask in batch.mask_tiles])
    rows, labels = [], []
    for prefix, batch, rows_of_mask in zip(prefixes, batches, tokens, strict=True):
        branch = embed(batch.input_ids)
        branch = branch.masked_scatter(batch.is_mask[:, None], rows_of_mask.to(branch.dtype))
        rows.append(torch.cat([prefix, branch]))
        labels.append(torch.cat([torch.full_like(batch.prefix_ids, IGNORED), batch.labels]))
    embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    targets = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED).flatten()
    number, length = embeddings.shape[:2]
    if embeddings.device.type == "cpu":
        run = prefix_run(Layout((length,) * number, ((1,),) * number), embeddings.device)
        positions = torch.arange(length).repeat(number)
        hidden = captioner._language_model(embeddings.flatten(0, 1), positions, run)
    else:
        # Causal, so that padding on the right is not seen: no mask, the fused kernel.
        hidden = base.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state.flatten(0, 1)
    kept = targets != IGNORED
    return base.lm_head(hidden[kept], targets[kept]).sum() / kept.sum()


def one_region_each(bench: Bench, example: Example, number: int) -> list[PackedBatch]:
    captioner = bench.captioner
    parts = [replace(example, regions=example.regions[at : at + 1]) for at in range(number)]
    return [pack([part], captioner.processor, **captioner.pack_options()).to(bench.device) for part in parts]


def measure(
    bench: Bench, tiles: int, num_tokens: int, regions: Sequence[int], *, budget: float
) -> list[dict[str, Any]]:
    """All cases of a number of tiles and of mask tokens, in turns, for about `budget` seconds."""
    set_shape(bench, tiles, num_tokens)
    captioner = bench.captioner
    examples = {number: drawn_example(tiles, number) for number in regions}
    batches = {
        number: pack([example], captioner.processor, **captioner.pack_options()).to(bench.device)
        for number, example in examples.items()
    }
    pair = one_region_each(bench, drawn_example(tiles, PADDED), PADDED)
    ways: dict[Any, Callable[[], Tensor]] = {
        "single": lambda: sequences_loss(captioner, pair[:1]),
        "padded": lambda: sequences_loss(captioner, pair),
        **{number: lambda batch=batch: packed_loss(captioner, batch) for number, batch in batches.items()},  # type: ignore[misc]
    }
    spent = first = bench.seconds(ways["single"])  # warm-up
    if first < budget / 40:
        for loss in ways.values():
            spent += bench.seconds(loss)
    found: dict[Any, list[float]] = {way: [] for way in ways}
    steps: list[float] = []
    round_seconds = 0.0
    while not steps or (spent + round_seconds < budget and len(steps) < 5):
        for way, loss in ways.items():
            found[way].append(bench.seconds(loss))
        steps.append(bench.step_seconds())
        round_seconds = sum(seconds[-1] for seconds in found.values())
        spent += round_seconds
    medians = {way: statistics.median(seconds) for way, seconds in found.items()}
    return [
        case(bench, tiles, num_tokens, batches[number], medians, number, statistics.median(steps), len(steps))
        for number in regions
    ]


def case(
    bench: Bench,
    tiles: int,
    num_tokens: int,
    batch: PackedBatch,
    medians: dict[Any, float],
    number: int,
    step: float,
    rounds: int,
) -> dict[str, Any]:
    """One row of the result. A step of the optimizer is shared by the image's regions, whichever way they come."""
    captioner = bench.captioner
    config, mask, learns = captioner.base.config, captioner.config.mask, TrainedParts(lora_rank=RANK)
    branches = branches_of(batch)
    with_thumbnail = tiles + (tiles > 1)
    packed = number / (medians[number] + step)
    single = 1 / (medians["single"] + step / number)
    padded = 1 / (medians["padded"] / PADDED + step / number)
    limit = limit_speedup(config, mask, learns, tiles=with_thumbnail, branches=branches)
    whole = limit_speedup(describe("internvl2.5-1b"), mask, learns, tiles=with_thumbnail, branches=branches)
    flops = total(training_flops(config, mask, batch.counts, learns))
    row = {
        "regions_per_image": number,
        "tiles": tiles,
        "tiles_with_thumbnail": with_thumbnail,
        "num_tokens": num_tokens,
        "packed": round(packed, 4),
        "single": round(single, 4),
        "padded": round(padded, 4),
        "speedup": round(packed / single, 2),
        "limit_speedup": round(limit, 2),
        "limit_share": round(packed / single / limit, 3),
        "limit_speedup_whole_model": round(whole, 2),
        "packed_gflops": round(flops / (medians[number] + step) / 1e9, 1),
        "prefix_tokens": batch.counts.prefix,
        "branch_tokens": batch.counts.branch,
        "rounds": rounds,
    }
    if bench.device.type == "cuda":
        known = find_accelerator(torch.cuda.get_device_name())
        peak = known and (known.bf16_flops if bench.bf16 else known.fp32_flops)
        row["mfu"] = round(flops / (medians[number] + step) / peak, 4) if peak else None
    return row


def branches_of(batch: PackedBatch) -> list[Branch]:
    (lengths,) = batch.layout.branches
    captions = torch.bincount(batch.branch[batch.labels != IGNORED], minlength=len(lengths)).tolist()
    masks = [len(mask.values) for mask in batch.mask_tiles]
    return [Branch(*sizes) for sizes in zip(lengths, captions, masks, strict=True)]


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    head = f"{'tiles':>5}{'N':>4}{'regions':>9}{'packed':>10}{'single':>10}{'padded':>10}"
    head += f"{'speed-up':>10}{'limit':>8}{'share':>8}{'whole model':>13}   regions/s"
    lines = [
        f"{row['tiles']:>5}{row['num_tokens']:>4}{row['regions_per_image']:>9}{row['packed']:>10.3f}"
        f"{row['single']:>10.3f}{row['padded']:>10.3f}{row['speedup']:>9.1f}x{row['limit_speedup']:>7.1f}x"
        f"{row['limit_share']:>8.2f}{row['limit_speedup_whole_model']:>12.1f}x"
        for row in rows
    ]
    return "\n".join([head, *lines])


def plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """Speed-up over one region per sequence by regions per image, of the most mask tokens measured."""
    most = max(row["num_tokens"] for row in rows)
    curves: dict[str, dict[int, tuple[float, float]]] = {}
    for row in rows:
        if row["num_tokens"] == most:
            label = f"{row['tiles']} tiles" if row["tiles"] > 1 else "1 tile"
            curves.setdefault(label, {})[row["regions_per_image"]] = (row["speedup"], row["limit_speedup"])
    return speedups(curves, xlabel=f"regions per image, N = {most}")


def main() -> None:
    """Measure, print, write."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, nargs="+", default=REGIONS, help="regions per image")
    parser.add_argument("--tiles", type=int, nargs="+", default=list(TILES), choices=TILES, help="most tiles")
    parser.add_argument("--num_tokens", type=int, nargs="+", default=NUM_TOKENS, help="mask tokens a tile")
    parser.add_argument("--part", type=int, default=1 if cuda else 12, help="an n-th of layers and of the vocabulary")
    parser.add_argument("--seconds", type=float, default=20 if cuda else 200, help="for each tiles and N, about")
    parser.add_argument("--output", default=str(RESULT))
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    bf16 = cuda or torch.cpu._is_avx512_bf16_supported()
    if not cuda:
        torch.set_num_threads(1)
    config = part_of_model(options.part)
    bench = new_bench(config, device, bf16=bf16)
    payload: dict[str, Any] = {
        "context": capture_context(),
        "shape": "internvl2.5-1b",
        "part": f"1/{options.part} of the layers of vision tower and language model, and of the vocabulary",
        "layers": {"vision": config.vision_config.num_hidden_layers, "text": config.text_config.num_hidden_layers},
        "vocabulary": config.text_config.vocab_size,
        "lora_rank": RANK,
        "computed_in": "bfloat16" if bf16 else "float32",
        "clock": "wall seconds of one GPU" if cuda else "CPU seconds of one thread",
        "cases": [],
    }
    for tiles in options.tiles:
        for num_tokens in options.num_tokens:
            rows = measure(bench, tiles, num_tokens, options.regions, budget=options.seconds)
            payload["cases"] += rows
            write_json(options.output, payload)
            Path(options.output).with_suffix(".svg").write_bytes(plot(payload["cases"]))
            print(as_table(rows), flush=True)
    print(as_table(payload["cases"]))
    print(json.dumps(payload))


if __name__ == "__main__":
    main()
