"""Memory of training: the formula compared with torch's allocations.

    python benchmarks/memory.py            (about 4 minutes on two cores that have nothing else to do)

Small InternVLs of both families, 2 workers with DeepSpeed on gloo, stages 1 and 2, ZeRO 1, 2 and 3, in float32 or in
DeepSpeed's bfloat16 as GPUs use it. A case takes two optimizer steps under torch's profiler, which sees every
allocation of its CPU allocator, as `torch.cuda.max_memory_allocated` does on a GPU; Python's own memory and gloo's are
not in it. DeepSpeed's bucket is excluded on both sides: it is far larger than these models. Then what `ureca plan`
makes of the formula for the real sizes, 1B to 38B.

Prints a table and, as the last line, one JSON; writes runs/benchmarks/memory.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memory_worker import SMALL, WORKERS, Case, base_config, mask_config

RESULT = Path("runs/benchmarks/memory.json")
WORKER = Path(__file__).with_name("memory_worker.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="hold the formula against what was measured before")
    if parser.parse_args().again:
        before = json.loads(RESULT.read_text())
        finish(before["cases"], measured=before["context"])
        return
    records: list[dict[str, Any]] = []
    for small in SMALL:
        # ZeRO 3 last: it puts a linear function in torch's place, for the whole process.
        plain = [Case(small=small, stage=s, zero_stage=z) for z in (1, 2, 3) for s in (1, 2)]
        more = [Case(small=small, stage=s, zero_stage=1, checkpointing=True) for s in (1, 2)] if small == "wide" else []
        records += start([*more, *plain])
        payload = finish(records)
    print(json.dumps(payload))


def finish(records: list[dict[str, Any]], *, measured: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write and print what there is so far. `measured`: where and with what, if it was before."""
    from ureca.hardware import capture_context
    from ureca.storage.files import write_json

    cases = [compare(record) for record in records]
    errors = [abs(case["error"]) for case in cases]
    payload = {
        "context": measured or capture_context(),
        "formula_context": capture_context(),
        "workers": WORKERS,
        "cases": cases,
        "largest_error": max(errors),
        "mean_error": round(sum(errors) / len(errors), 3),
        "projection": projection(),
    }
    write_json(str(RESULT), payload)
    print(table(payload), flush=True)
    return payload


def start(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Measure cases one after another in one pair of processes; what the first of them saw."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    text = json.dumps([asdict(case) for case in cases])
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), port, text],
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )
        for rank in range(WORKERS)
    ]
    output, _ = processes[0].communicate()
    if sum(process.wait() != 0 for process in processes):
        raise RuntimeError("a worker failed; its error stands above")
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def compare(record: dict[str, Any]) -> dict[str, Any]:
    """Return the formula's and the measured values."""
    from ureca.model.flops import Counts
    from ureca.training.sizing.memory import Setting, Sizes, peak_memory

    small = SMALL[record["small"]]
    sizes = Sizes.of(base_config(small), mask_config(small), stage=record["stage"], lora_rank=small.lora_rank)
    assert (sizes.parameters, sizes.trained) == (record["parameters"], record["trained"])
    setting = Setting(
        num_workers=WORKERS,
        zero_stage=record["zero_stage"],
        gpu=False,
        bf16=small.bf16,
        bf16_masters=small.bf16,
        checkpointing=record["checkpointing"],
        keeps_image_tokens=record["zero_stage"] < 3,
    )
    memory = peak_memory(sizes, Counts(**record["counts"]), setting, bucket=0)
    return {
        **record,
        "predicted_bytes": round(memory.total),
        "error": round(memory.total / record["measured_bytes"] - 1, 4),
        "parts": {name: round(value) for name, value in asdict(memory).items()},
    }


def table(payload: dict[str, Any]) -> str:
    """Return a table of measured and predicted memory, and of the projection to real sizes."""
    lines = ["model       stage  ZeRO  checkpointing  measured MB  formula MB   error"]
    for case in payload["cases"]:
        lines.append(
            f"{case['small']:<11} {case['stage']:>5} {case['zero_stage']:>5}  "
            f"{'yes' if case['checkpointing'] else '':<13} {case['measured_bytes'] / 1e6:>12.1f} "
            f"{case['predicted_bytes'] / 1e6:>11.1f} {case['error']:>7.1%}"
        )
    lines += ["", "GiB a GPU of 8, bf16, passes of 8,192 tokens, 7 tiles, N 16, LoRA 128"]
    lines.append("base            stage  checkpointing: ZeRO 1   ZeRO 2   ZeRO 3   without: ZeRO 1")
    rows: dict[tuple[str, int], list[str]] = {}
    for entry in payload["projection"]:
        rows.setdefault((entry["base"], entry["stage"]), []).append(f"{entry['bytes'] / 2**30:8.1f}")
    lines += [f"{base:<15} {stage:>5} {' ' * 14} {' '.join(cells)}" for (base, stage), cells in rows.items()]
    return "\n".join(lines)


def projection() -> list[dict[str, Any]]:
    """Return the values of `ureca plan` for the real sizes, with startup and CUDA included."""
    from ureca.training.config import BatchConfig, Stage1Config, Stage2Config, WorkersConfig
    from ureca.training.sizing.estimate import CAPTION_TOKENS, REGIONS_PER_IMAGE, Data, Machine, estimate

    data = Data(regions=None, regions_per_image=REGIONS_PER_IMAGE, caption_tokens=CAPTION_TOKENS, source="assumed")
    machine = Machine(name="any", num=8, memory_bytes=math.inf, flops=math.inf)
    found = []
    for base in ("internvl2.5-1b", "internvl2.5-2b", "internvl2.5-4b", "internvl2.5-8b", "internvl2.5-38b"):
        for zero_stage, checkpointing in ((1, True), (2, True), (3, True), (1, False)):
            workers = WorkersConfig(
                num_workers=8,
                use_gpu=True,
                bf16=True,
                zero_stage=zero_stage,  # type: ignore[arg-type]
                activation_checkpointing=checkpointing,
            )
            common: dict[str, Any] = {"table": "-", "preset": base, "workers": workers}
            common["batch"] = BatchConfig(tokens_per_device=8192)
            for stage, config in ((1, Stage1Config(**common)), (2, Stage2Config(**common, init="-"))):
                planned = estimate(stage, config, machine, data, mfu=1.0)  # type: ignore[arg-type]
                found.append(
                    {
                        "base": base,
                        "stage": stage,
                        "zero_stage": zero_stage,
                        "checkpointing": checkpointing,
                        "bytes": round(planned.bytes),
                        "parts": {name: round(value) for name, value in asdict(planned.memory).items()},
                    }
                )
    return found


if __name__ == "__main__":
    main()
