"""Captioning speed: our engine, transformers' generate, and vLLM without prefix reuse.

    python benchmarks/serving.py                           half an hour on one core
    python benchmarks/serving.py --models nano --tokens 16

64 regions of one image, and 64 images of one region each; greedy, every caption exactly --tokens long (the end marker
is ignored), float32, everything on one core with one thread, the four ways one after the other:

    ours               the service's engine: the image once, then all its regions together
    no_prefix          the same vLLM, each region a separate request, all at once, no KV block used twice
    generate_single    transformers' generate, one region at a time
    generate_batched   transformers' generate, eight at a time, padded on the left; regions of one image share its
                       vision tower's output

Models: nano (the captioner of the package), and InternVL2.5-1B's widths with random weights and a twelfth of layers
and vocabulary (2 of 24 layers of vision tower and language model each), at 1 and at 7 tiles. Where a slow way would
take minutes it does fewer regions (`measured`) and its rate stands for all. The limit is the ratio of operations
(`ureca.model.flops`, forward only): what sharing the image can save when every operation takes the same time. Beyond
the ratio lies what batching alone gives: 64 rows of a matrix product cost less than 64 products of one row.

For nano, captions of free length are held against transformers' token by token as well (`equality`). Prints a table
and, as the last line, one JSON; writes runs/benchmarks/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import WORDS, part_of_model

from ureca.engine.engine import CaptionEngine
from ureca.engine.parity import compare_with_transformers
from ureca.engine.results import Caption
from ureca.hardware import capture_context
from ureca.model.captioner import Captioner
from ureca.model.exporting.export import export
from ureca.model.flops import Branch, TrainedParts, limit_speedup
from ureca.model.processor import CaptionerProcessor
from ureca.nano.architecture import nano_processor, nano_tokenizer
from ureca.regions.rle import Rle, box_to_rle
from ureca.serving.settings import ServedModel
from ureca.storage.files import write_json

NUM = 64
AT_A_TIME = 8
"""Images in progress in our engine, and rows of a batch of generate."""
PART = 12
RESULT = Path("runs/benchmarks/serving.json")


@dataclass(frozen=True)
class Model:
    """An export under test, and images of one size for it."""

    name: str
    directory: Path
    size: tuple[int, int]
    """(height, width) of the images."""
    most: int
    """Regions that generate does at most in one case."""


@dataclass(frozen=True)
class Work:
    """One image and its regions; a case is a list of these."""

    image: np.ndarray
    regions: list[Rle]
    queries: list[str]


@dataclass(frozen=True)
class Timing:
    seconds: float
    regions: int
    latencies: list[float]
    """Seconds from the question until each region's caption was there."""

    @property
    def rate(self) -> float:
        return self.regions / self.seconds


def random_export(directory: Path, *, tile_limit: int) -> Path:
    """A captioner of InternVL2.5-1B's widths as an export."""
    # After ureca.model, which makes torchvision importable with CPU torch.
    from transformers import InternVLForConditionalGeneration
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

    torch.manual_seed(0)
    config = part_of_model(PART)
    tokenizer = nano_tokenizer([" ".join(WORDS)] * 20, num_words=512)
    hf = nano_processor(tokenizer)
    size = {"height": 448, "width": 448}
    hf.image_processor = GotOcr2ImageProcessor(size=size, crop_to_patches=True)  # type: ignore[attr-defined]
    config.image_token_id = hf.image_token_id  # type: ignore[attr-defined]
    config.text_config.bos_token_id = None  # those of the whole vocabulary
    config.text_config.eos_token_id = tokenizer.eos_token_id
    base = InternVLForConditionalGeneration(config)
    base_dir = directory / "base"
    base.save_pretrained(base_dir)
    CaptionerProcessor(hf, tile_limit=tile_limit).save_pretrained(str(base_dir))
    captioner = Captioner.from_base(str(base_dir), tile_limit=tile_limit, tokens_per_tile=16)
    captioner.save_pretrained(directory / "model")
    return export(directory / "model", directory / "export")


def drawn(size: tuple[int, int], num_images: int, per_image: int, query: str) -> list[Work]:
    """Noise with boxes of a tenth to a third of its sides."""
    rng = np.random.default_rng(num_images)
    height, width = size
    works = []
    for _ in range(num_images):
        regions = []
        for _ in range(per_image):
            h, w = (int(side * rng.uniform(0.1, 0.33)) for side in size)
            y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
            regions.append(box_to_rle((x, y, x + w, y + h), size))
        works.append(Work(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), regions, [query] * per_image))
    return works


def first(works: Sequence[Work], most: int) -> list[Work]:
    """The first `most` regions."""
    kept: list[Work] = []
    for work in works:
        room = most - sum(len(each.regions) for each in kept)
        if room > 0:
            kept.append(Work(work.image, work.regions[:room], work.queries[:room]))
    return kept


# ---- the four ways


async def ours(engine: CaptionEngine, works: Sequence[Work], tokens: int) -> Timing:
    """All regions of an image in one call, `AT_A_TIME` images in progress."""
    places, latencies = asyncio.Semaphore(AT_A_TIME), list[float]()

    async def one(work: Work) -> None:
        async with places:
            begun = time.perf_counter()
            stream = engine.stream(work.image, work.regions, work.queries, max_tokens=tokens, min_tokens=tokens)
            async for _, event in stream:
                if isinstance(event, Caption):
                    assert event.completion_tokens == tokens
                    latencies.append(time.perf_counter() - begun)

    started = time.perf_counter()
    await asyncio.gather(*map(one, works))
    return Timing(time.perf_counter() - started, len(latencies), latencies)


async def no_prefix(engine: CaptionEngine, works: Sequence[Work], tokens: int) -> Timing:
    """The same, each region a separate request; `engine` keeps no prefixes."""
    places, latencies = asyncio.Semaphore(AT_A_TIME), list[float]()

    async def region(image: np.ndarray, rle: Rle, query: str) -> None:
        begun = time.perf_counter()
        [caption] = await engine.caption(image, [rle], [query], max_tokens=tokens, min_tokens=tokens)
        assert caption.completion_tokens == tokens
        latencies.append(time.perf_counter() - begun)

    async def one(work: Work) -> None:
        async with places:
            await asyncio.gather(*(region(work.image, *each) for each in zip(work.regions, work.queries, strict=True)))

    started = time.perf_counter()
    await asyncio.gather(*map(one, works))
    return Timing(time.perf_counter() - started, len(latencies), latencies)


def generate_single(captioner: Captioner, works: Sequence[Work], tokens: int) -> Timing:
    return _generate(captioner, works, tokens, rows=1)


def generate_batched(captioner: Captioner, works: Sequence[Work], tokens: int) -> Timing:
    return _generate(captioner, works, tokens, rows=AT_A_TIME)


@torch.no_grad()
def _generate(captioner: Captioner, works: Sequence[Work], tokens: int, *, rows: int) -> Timing:
    """BatchLoader of that many regions, of one image where it has as many."""
    batches: list[list[Work]] = [[]]
    for work in works:
        for at in range(0, len(work.regions), rows):
            part = Work(work.image, work.regions[at : at + rows], work.queries[at : at + rows])
            if sum(len(each.regions) for each in batches[-1]) + len(part.regions) > rows:
                batches.append([])
            batches[-1].append(part)
    started, latencies = time.perf_counter(), list[float]()
    for batch in batches:
        begun = time.perf_counter()
        prompts = [captioner.prompt_embeddings(each.image, each.regions, each.queries) for each in batch]
        longest = max(mask.shape[1] for _, mask in prompts)
        embeddings, mask = (
            torch.cat([_left_padded(prompt[number], longest) for prompt in prompts]) for number in (0, 1)
        )
        base: Any = captioner.base
        made = base.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=captioner.processor.end_token_id,
            pad_token_id=captioner.processor.end_token_id,
        )
        assert made.shape[1] == tokens
        latencies += [time.perf_counter() - begun] * len(made)
    return Timing(time.perf_counter() - started, len(latencies), latencies)


def _left_padded(rows: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([rows.new_zeros(len(rows), length - rows.shape[1], *rows.shape[2:]), rows], dim=1)


# ---- cases


def limit(captioner: Captioner, work: Work, tokens: int) -> float:
    """One region at a time over all of an image's regions together, in operations of the forward pass."""
    processor, mask = captioner.processor, captioner.config.mask
    columns, rows = processor.grid(work.image.shape[:2])
    tiles = columns * rows + (columns * rows > 1)
    embeddings = captioner.prompt_embeddings(work.image, work.regions, work.queries)[1]
    prefix = len(processor.prefix_ids(tiles))
    branches = [
        Branch(int(length) - prefix + tokens, tokens, len(processor.mask_tiles(rle).values))
        for length, rle in zip(embeddings.sum(dim=1), work.regions, strict=True)
    ]
    return limit_speedup(captioner.base.config, mask, TrainedParts(), tiles=tiles, branches=branches)


async def run_engine(
    model: Model, cases: Sequence[list[Work]], way: Callable[..., Any], tokens: int, *, prefix_caching: bool
) -> list[Timing]:
    engine = CaptionEngine(model.directory, dtype="float32", prefix_caching=prefix_caching)
    await engine.start()
    try:
        warm = drawn(model.size, 3, 2, cases[0][0].queries[0])
        await way(engine, warm, tokens)
        return [await way(engine, works, tokens) for works in cases]
    finally:
        engine.close()
        await asyncio.sleep(0.5)  # vLLM closes its sockets in this loop


async def equality(model: Model, works: Sequence[Work], tokens: int) -> dict[str, int]:
    """Captions of free length from the engine against transformers'."""
    engine, captioner = CaptionEngine(model.directory, dtype="float32"), Captioner.from_pretrained(model.directory)
    await engine.start()
    try:
        captions = [await engine.caption(each.image, each.regions, each.queries, max_tokens=tokens) for each in works]
    finally:
        engine.close()
        await asyncio.sleep(0.5)
    found = [
        compare_with_transformers(captioner, each.image, each.regions, each.queries, of, max_tokens=tokens)
        for each, of in zip(works, captions, strict=True)
    ]
    return {
        "regions": sum(each.requests for each in found),
        "equal": sum(each.equal for each in found),
        "tied_within_1e-3": sum(difference.harmless for each in found for difference in each.differing),
        "other": sum(not difference.harmless for each in found for difference in each.differing),
    }


def measure(model: Model, tokens: int) -> list[dict[str, Any]]:
    """Both cases of a model, all ways."""
    captioner = Captioner.from_pretrained(model.directory).eval()
    query = captioner.processor.query("unique")
    cases = [drawn(model.size, 1, NUM, query), drawn(model.size, NUM, 1, query)]
    limits = [limit(captioner, works[0], tokens) for works in cases]
    fewer = [first(works, model.most) for works in cases]
    timings = {
        "ours": asyncio.run(run_engine(model, cases, ours, tokens, prefix_caching=True)),
        "no_prefix": asyncio.run(run_engine(model, cases, no_prefix, tokens, prefix_caching=False)),
    }
    _generate(captioner, first(cases[0], 2), tokens, rows=2)  # warm-up
    timings["generate_single"] = [generate_single(captioner, works, tokens) for works in fewer]
    timings["generate_batched"] = [generate_batched(captioner, works, tokens) for works in fewer]
    return [
        row(model, works, {way: of[number] for way, of in timings.items()}, limits[number], tokens)
        for number, works in enumerate(cases)
    ]


def row(
    model: Model, works: Sequence[Work], timings: dict[str, Timing], of_counts: float, tokens: int
) -> dict[str, Any]:
    rates = {way: timing.rate for way, timing in timings.items()}
    speedup = rates["ours"] / rates["generate_single"]
    return {
        "model": model.name,
        "regions_per_image": len(works[0].regions),
        "images": len(works),
        "tokens": tokens,
        **{way: round(rate, 3) for way, rate in rates.items()},
        "p50": round(float(np.percentile(timings["ours"].latencies, 50)), 3),
        "p99": round(float(np.percentile(timings["ours"].latencies, 99)), 3),
        "latency": {
            way: {f"p{at}": round(float(np.percentile(timing.latencies, at)), 3) for at in (50, 99)}
            for way, timing in timings.items()
        },
        "speedup": round(speedup, 2),
        "over_no_prefix": round(rates["ours"] / rates["no_prefix"], 2),
        "limit_speedup": round(of_counts, 2),
        "limit_share": round(speedup / of_counts, 3),
        "core_seconds_per_1000": {way: round(1000 / rate, 1) for way, rate in rates.items()},
        "measured": {way: timing.regions for way, timing in timings.items()},
    }


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    head = f"{'model':24}{'images x regions':>18}{'ours':>9}{'no prefix':>11}{'batched':>9}{'single':>9}"
    head += f"{'p50 s':>8}{'p99 s':>8}{'/single':>9}{'/no prefix':>12}{'limit':>8}{'share':>7}   regions/s"
    lines = [
        f"{row['model']:24}{row['images']:>10} x {row['regions_per_image']:<5}{row['ours']:>9.2f}"
        f"{row['no_prefix']:>11.2f}{row['generate_batched']:>9.2f}{row['generate_single']:>9.2f}{row['p50']:>8.2f}"
        f"{row['p99']:>8.2f}{row['speedup']:>8.1f}x{row['over_no_prefix']:>11.1f}x{row['limit_speedup']:>7.1f}x"
        f"{row['limit_share']:>7.2f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nano", "1b", "1b-tiles"], choices=["nano", "1b", "1b-tiles"])
    parser.add_argument("--tokens", type=int, default=32, help="of every caption")
    parser.add_argument("--output", default=str(RESULT))
    options = parser.parse_args()
    torch.set_num_threads(1)
    # vLLM's processes inherit it: nothing here gets more than one core.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    payload: dict[str, Any] = {
        "context": capture_context(),
        "internvl2.5-1b": f"its widths, random weights, 1/{PART} of the layers and of the vocabulary",
        "computed_in": "float32",
        "clock": "wall seconds of one core",
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        known: dict[str, Callable[[], Model]] = {
            "nano": lambda: Model("nano", ServedModel().export_dir, (256, 256), NUM),
            "1b": lambda: Model(
                "internvl2.5-1b, 1 tile", random_export(Path(folder) / "1", tile_limit=1), (448, 448), 16
            ),
            "1b-tiles": lambda: Model(
                "internvl2.5-1b, 7 tiles", random_export(Path(folder) / "7", tile_limit=6), (896, 1344), 8
            ),
        }
        for name in options.models:
            print(f"serving  {name}", file=sys.stderr, flush=True)
            model = known[name]()
            payload["cases"] += measure(model, options.tokens)
            if name == "nano":
                query = Captioner.from_pretrained(model.directory).processor.query("unique")
                payload["equality"] = asyncio.run(equality(model, drawn(model.size, 4, 16, query), options.tokens))
            write_json(options.output, payload)
            print(as_table(payload["cases"]), flush=True)
    print(as_table(payload["cases"]))
    print(json.dumps(payload))


if __name__ == "__main__":
    main()
