"""One of the two processes of benchmarks/memory.py: small InternVLs, their training, and what torch allocates in it."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

WORKERS = 2
TILE_PX, PATCH_PX = 128, 16
REGIONS = 4
"""Regions in each of two images."""
BUCKET = 1_000_000
"""Elements: DeepSpeed's bucket here; its bytes are taken off the peak."""


@dataclass(frozen=True, kw_only=True)
class Small:
    """A small InternVL."""

    family: str
    bf16: bool
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
        family="llama", bf16=False, width=512, layers=3, heads=8, kv_heads=2, mlp_width=1792, vocabulary=4096,
        vision_width=192, tiles=2, tokens_per_tile=8, lora_rank=64,
    ),
    "deep": Small(
        family="qwen2", bf16=True, width=256, layers=10, heads=4, kv_heads=2, mlp_width=1024, vocabulary=2048,
        vision_width=128, tiles=1, tokens_per_tile=4, lora_rank=32,
    ),
    "many words": Small(
        family="qwen2", bf16=False, width=224, layers=3, heads=7, kv_heads=1, mlp_width=1216, vocabulary=32768,
        vision_width=128, tiles=2, tokens_per_tile=8, lora_rank=16,
    ),
    "many tiles": Small(
        family="llama", bf16=True, width=192, layers=5, heads=6, kv_heads=6, mlp_width=512, vocabulary=4096,
        vision_width=256, tiles=6, tokens_per_tile=16, lora_rank=16,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement."""

    small: str
    stage: int
    zero_stage: int
    checkpointing: bool = False


def main(rank: int, port: str, cases: Sequence[Case]) -> None:
    """Measure them in turn; the first process prints a line of JSON for each."""
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
    """Build the model, take two steps, and say what was held at each point."""
    import deepspeed

    from ureca.model.packing import pack
    from ureca.training.config import OptimizerConfig, WorkersConfig
    from ureca.training.deepspeed import deepspeed_config, loss_for_backward, parameter_groups

    small = SMALL[case.small]
    zero_stage: Any = case.zero_stage
    workers = WorkersConfig(num_workers=WORKERS, zero_stage=zero_stage, bf16=small.bf16, use_gpu=small.bf16)
    optimizer = OptimizerConfig(learning_rate=1e-4)
    config = deepspeed_config(optimizer, workers)
    config["zero_optimization"] |= {"overlap_comm": False, "reduce_bucket_size": BUCKET}  # a CPU has no streams
    config["optimizer"]["params"]["fused"] = False
    gc.collect()
    with allocations() as seen:
        captioner, examples = make(small, seed=rank)
        if case.stage == 2:
            captioner.add_lora(rank=small.lora_rank)
        captioner.trainable(case.stage)
        if case.checkpointing:
            captioner.checkpoint_activations()
        engine, *_ = deepspeed.initialize(
            model=captioner, model_parameters=parameter_groups(captioner, optimizer), config=config
        )
        seen.mark("built")
        batch = pack(examples, captioner.processor, **captioner.pack_options())
        if zero_stage < 3:  # as in the loop, image tokens come before the pass
            features = captioner.image_features(batch.pixel_values.to(captioner.base.dtype))
            batch = replace(batch, pixel_values=None, image_features=features)
            del features
        seen.mark("images")
        for step in (1, 2):
            loss, tokens = engine(batch)
            seen.mark(f"forward {step}")
            engine.backward(loss_for_backward(loss / int(tokens), WORKERS), scale_wrt_gas=False)
            del loss, tokens
            seen.mark(f"backward {step}")
            engine.step()
            seen.mark(f"step {step}")
    phases = seen.phases()
    bucket = BUCKET * (2 if small.bf16 else 4)
    measured = max(
        phase["peak"] - (bucket if zero_stage == 3 or name.startswith("backward") else 0)
        for name, phase in phases.items()
        if name not in ("built", "images")  # a GPU's model is built in the machine's memory
    )
    engine.destroy()
    return {
        **asdict(case),
        "bf16": small.bf16,
        "parameters": counted(captioner.parameters()),
        "trained": counted(p for p in captioner.parameters() if p.requires_grad),
        "counts": asdict(batch.counts),
        "measured_bytes": measured,
        "phases": phases,
    }


def counted(parameters: Iterable[Any]) -> int:
    """Elements, of parameters that ZeRO 3 has shared out too."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


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
    """Record the allocations of torch's CPU allocator inside the context."""
    from torch.profiler import ProfilerActivity, profile

    seen = _Allocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield seen
    found = profiler.profiler.kineto_results.events()
    seen.events = [(event.start_ns(), event.nbytes()) for event in found if event.name() == "[memory]"]


def base_config(small: Small, image_token_id: int = 0) -> Any:
    """Its InternVLConfig."""
    from transformers import InternVLConfig, LlamaConfig, Qwen2Config
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

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
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=image_token_id,
        image_seq_length=(TILE_PX // PATCH_PX) ** 2,
        downsample_ratio=1.0,
        tie_word_embeddings=False,
    )


def mask_config(small: Small) -> Any:
    """Its MaskEncoderConfig."""
    from ureca.model.mask_encoder import MaskEncoderConfig

    return MaskEncoderConfig(tokens_per_tile=small.tokens_per_tile, tile_px=TILE_PX, hidden_size=small.width)


def make(small: Small, seed: int) -> tuple[Any, list[Any]]:
    """A captioner of random weights and two images with regions."""
    import numpy as np
    import torch
    from transformers import InternVLForConditionalGeneration

    from ureca.model.captioner import Captioner, CaptionerConfig
    from ureca.model.mask_encoder import MaskEncoder
    from ureca.model.packing import Example, RegionExample
    from ureca.model.processor import CaptionerProcessor
    from ureca.nano.architecture import nano_processor, nano_tokenizer
    from ureca.regions.rle import encode_mask

    tokenizer = nano_tokenizer(["a red round part at the left of the picture, in front of the green one"] * 20, 384)
    torch.manual_seed(0)
    base = InternVLForConditionalGeneration(base_config(small, int(tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))))
    mask = mask_config(small)
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
    main(int(sys.argv[1]), sys.argv[2], [Case(**record) for record in json.loads(sys.argv[3])])
