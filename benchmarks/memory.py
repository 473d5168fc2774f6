"""Memory of training: what the formula says, held against what torch allocates.

    python benchmarks/memory.py            (about 4 minutes on two cores)

Small InternVLs of both families, 2 workers with DeepSpeed on gloo, stages 1 and 2, ZeRO 1, 2 and 3, float32 and
DeepSpeed's bfloat16 as GPUs use it. A case takes two optimizer steps under torch's profiler, which sees every
allocation of its CPU allocator, as `torch.cuda.max_memory_allocated` does on a GPU; Python's own memory and gloo's are
not in it. Then the same formula for the real sizes, 1B to 38B.

Prints a table and, as the last line, one JSON; writes runs/benchmarks/memory.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

RESULT = Path("runs/benchmarks/memory.json")
WORKERS = 2
TILE_PX, PATCH_PX = 128, 16
REGIONS = 12
"""Of each of two images."""


@dataclass(frozen=True, kw_only=True)
class Small:
    """A small InternVL."""

    family: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocabulary: int
    vision_width: int
    tiles: int
    """Tile limit; the thumbnail comes on top."""
    tokens_per_tile: int
    lora_rank: int


SMALL = {
    "wide": Small(
        family="qwen2", width=512, layers=4, heads=8, kv_heads=2, mlp_width=1792, vocabulary=4096,
        vision_width=192, tiles=2, tokens_per_tile=8, lora_rank=64,
    ),
    "deep": Small(
        family="qwen2", width=256, layers=12, heads=4, kv_heads=2, mlp_width=1024, vocabulary=2048,
        vision_width=128, tiles=1, tokens_per_tile=4, lora_rank=32,
    ),
    "many words": Small(
        family="qwen2", width=224, layers=4, heads=7, kv_heads=1, mlp_width=1216, vocabulary=32768,
        vision_width=128, tiles=2, tokens_per_tile=8, lora_rank=16,
    ),
    "many tiles": Small(
        family="qwen2", width=192, layers=6, heads=6, kv_heads=6, mlp_width=512, vocabulary=4096,
        vision_width=256, tiles=6, tokens_per_tile=16, lora_rank=16,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured at once."""

    small: str
    stage: int
    zero_stage: int
    bf16: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one of the small models")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", help=argparse.SUPPRESS)
    parser.add_argument("--cases", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.worker, arguments.port, [Case(**record) for record in json.loads(arguments.cases)])
        return
    measured = []
    for small in [arguments.only] if arguments.only else SMALL:
        cases = [
            Case(small=small, stage=stage, zero_stage=zero_stage, bf16=bf16)
            for bf16 in (False, True)
            for stage in (1, 2)
            for zero_stage in (1, 2, 3)
        ]
        measured += start(cases)
    print(json.dumps(measured))


def start(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Measure cases one after another in one pair of processes; what the first of them saw."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    text = json.dumps([asdict(case) for case in cases])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", str(rank), "--port", port, "--cases", text],
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )
        for rank in range(WORKERS)
    ]
    output, _ = processes[0].communicate()
    if any(process.wait() for process in processes):
        raise RuntimeError("a worker failed; its error stands above")
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


# ---- a worker


def work(rank: int, port: str, cases: Sequence[Case]) -> None:
    """One of the two processes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORKERS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    import logging

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__ = {}  # as the training loop does: nothing is compiled
    deepspeed.init_distributed("gloo")
    for case in cases:
        record = measure(case, rank)
        if rank == 0:
            print(json.dumps(record), flush=True)


def measure(case: Case, rank: int) -> dict[str, Any]:
    """Build the model, take two steps, and give the bytes at each point."""
    import deepspeed
    import torch

    from ureca.model import pack
    from ureca.training.config import OptimizerConfig, WorkersConfig
    from ureca.training.zero import deepspeed_config, loss_for_backward

    small = SMALL[case.small]
    workers = WorkersConfig(num_workers=WORKERS, zero_stage=case.zero_stage, bf16=case.bf16, use_gpu=case.bf16)  # type: ignore[arg-type]
    config = deepspeed_config(OptimizerConfig(learning_rate=1e-4), workers, images_per_pass=2, passes=1)
    config["zero_optimization"]["overlap_comm"] = False  # a CPU has no streams
    gc.collect()
    with allocations() as seen:
        captioner, examples = make(small, seed=rank)
        if case.stage == 2:
            captioner.add_lora(rank=small.lora_rank)
        captioner.trainable(case.stage)
        engine, *_ = deepspeed.initialize(
            model=captioner, model_parameters=[p for p in captioner.parameters() if p.requires_grad], config=config
        )
        seen.mark("built")
        batch = pack(examples, captioner.processor, **captioner.pack_options())
        features = captioner.image_features(batch.pixel_values.to(captioner.base.dtype))
        batch = replace(batch, pixel_values=None, image_features=features)
        seen.mark("vision")
        for step in (1, 2):
            loss, tokens = engine(batch)
            seen.mark(f"forward {step}")
            engine.backward(loss_for_backward(loss, int(tokens), WORKERS), scale_wrt_gas=False)
            del loss, tokens
            seen.mark(f"backward {step}")
            engine.step()
            seen.mark(f"step {step}")
    trained = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in captioner.parameters() if p.requires_grad)
    everything = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in captioner.parameters())
    engine.destroy()
    del engine
    return {
        **asdict(case),
        "trained": trained,
        "parameters": everything,
        "prefix": list(batch.prefix_ids.shape),
        "bins": list(batch.input_ids.shape),
        "captions": int((batch.labels != -100).sum()),
        "mask tiles": sum(len(tiles) for tiles in batch.mask_tiles),
        "phases": seen.phases(),
    }


class _Allocations:
    def __init__(self) -> None:
        self.marks: list[tuple[str, int]] = []
        self.events: list[tuple[int, int]] = []

    def mark(self, name: str) -> None:
        """The phase of this name ends here."""
        self.marks.append((name, time.time_ns()))

    def phases(self) -> dict[str, dict[str, int]]:
        """For each phase the most bytes held in it, and those held at its end."""
        found: dict[str, dict[str, int]] = {}
        held, events = 0, iter(sorted(self.events))
        event = next(events, None)
        for name, end in self.marks:
            peak = held
            while event is not None and event[0] <= end:
                held += event[1]
                peak = max(peak, held)
                event = next(events, None)
            found[name] = {"peak": peak, "end": held}
        return found


@contextmanager
def allocations() -> Iterator[_Allocations]:
    """What torch's CPU allocator gives out and takes back within."""
    from torch.profiler import ProfilerActivity, profile

    seen = _Allocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield seen
    found = profiler.profiler.kineto_results.events()
    seen.events = [(event.start_ns(), event.nbytes()) for event in found if event.name() == "[memory]"]


def make(small: Small, seed: int) -> tuple[Any, list[Any]]:
    """A captioner of random weights and two images with regions."""
    import numpy as np
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig, Qwen2Config
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    from ureca.model import Captioner, CaptionerConfig, CaptionerProcessor, Example, MaskEncoder, MaskEncoderConfig, RegionExample
    from ureca.model.nano import nano_processor, nano_tokenizer
    from ureca.regions.rle import encode_mask

    tokenizer = nano_tokenizer(["a red round part at the left of the picture, in front of the green one"] * 20, 384)
    kind: Any = Qwen2Config if small.family == "qwen2" else LlamaConfig
    text = kind(
        hidden_size=small.width,
        num_hidden_layers=small.layers,
        num_attention_heads=small.heads,
        num_key_value_heads=small.kv_heads,
        intermediate_size=small.mlp_width,
        vocab_size=small.vocabulary,
        tie_word_embeddings=False,
    )
    vision = InternVLVisionConfig(
        hidden_size=small.vision_width,
        num_hidden_layers=3,
        num_attention_heads=small.vision_width // 32,
        intermediate_size=small.vision_width * 4,
        image_size=TILE_PX,
        patch_size=PATCH_PX,
    )
    torch.manual_seed(0)
    base = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=int(tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")),
            image_seq_length=(TILE_PX // PATCH_PX) ** 2,
            downsample_ratio=1.0,
            tie_word_embeddings=False,
        )
    )
    mask = MaskEncoderConfig(tokens_per_tile=small.tokens_per_tile, tile_px=TILE_PX, hidden_size=small.width)
    hf = nano_processor(tokenizer, tile_limit=small.tiles)
    hf.image_processor.size = {"height": TILE_PX, "width": TILE_PX}
    hf.image_seq_length = (TILE_PX // PATCH_PX) ** 2
    processor = CaptionerProcessor(hf, tile_limit=small.tiles)
    config = CaptionerConfig(base="small", base_hash="", tile_limit=small.tiles, mask=mask)
    captioner = Captioner(base, MaskEncoder(mask), config, processor)
    draw = np.random.default_rng(seed)
    size = (256, 384)
    examples = []
    for _ in range(2):
        regions = []
        for _ in range(REGIONS):
            drawn = np.zeros(size, bool)
            top, left = draw.integers(0, 200), draw.integers(0, 300)
            drawn[top : top + 50, left : left + 80] = True
            words = " ".join(draw.choice(["a", "red", "round", "part", "left", "picture"], size=16))
            regions.append(RegionExample(encode_mask(drawn), "describe this region in detail.", words))
        examples.append(Example(draw.integers(0, 256, (*size, 3), dtype=np.uint8), tuple(regions)))
    return captioner, examples


if __name__ == "__main__":
    main()
