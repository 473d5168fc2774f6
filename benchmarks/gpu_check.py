"""Check a GPU machine: attention, training, export, engine, service and speed, each in a separate process.

    make gpu-check                                   all parts; below ten minutes is the aim, no GPU was measured yet
    python benchmarks/gpu_check.py attention train   only these parts
    python benchmarks/gpu_check.py --device cpu      the same code without a GPU, to test this script

    machine     driver, GPU memory, builds of torch and vLLM, C compiler and Python headers for Triton
    attention   FlexAttention in bfloat16 against float32 on the CPU: loss, gradients, recomputation
    train       one step of stages 1 and 2 with ZeRO 1 and 3, on Ray Train
    export      export of that model, verified by transformers
    engine      captions of vLLM equal to transformers'
    service     `ureca serve` answers a request
    speed       regions per second of packed and of single sequences, and MFU

A part that fails does not stop the others. Prints a table to paste into an issue and, as the last line, one JSON;
writes runs/gpu_check/result.json. Models are nano and random weights in InternVL2.5-1B's shape.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path("runs/gpu_check")
TIMEOUT = 300


def machine(device: str) -> str:
    """Name what a GPU needs; raise RuntimeError for what is missing."""
    import torch

    from ureca.hardware import installed_version, list_gpus

    missing = []
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        missing.append("a C compiler (Debian: gcc), which Triton calls")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        missing.append("Python.h (Debian: python3-dev), which Triton includes")
    if device != "cpu" and not torch.cuda.is_available():
        missing.append("a GPU that torch can use; is requirements-gpu.lock installed, and the driver new enough?")
    if device != "cpu" and installed_version("vllm") is None:
        missing.append("vLLM's GPU build (requirements-gpu.lock)")
    if missing:
        raise RuntimeError("missing: " + "; ".join(missing))
    gpus = ", ".join(list_gpus()) or "no GPU"
    return f"{gpus}; torch {torch.__version__}, CUDA {torch.version.cuda}, vLLM {installed_version('vllm')}"


def attention(device: str) -> str:
    """Compare loss and gradients of a packed step with those in float32 on the CPU."""
    import torch
    from training import drawn_example, new_bench, packed_loss, part_of_model, set_shape

    from ureca.model.packing import pack

    def step(where: str, *, recompute: bool) -> tuple[float, torch.Tensor]:
        place = torch.device(where)
        bench = new_bench(part_of_model(12), place, bf16=place.type != "cpu")
        set_shape(bench, 6, 16)
        captioner = bench.captioner
        with torch.no_grad():  # LoRA starts at zero, which would leave half of its weights without a gradient
            for name, parameter in captioner.named_parameters():
                if "lora_B" in name:
                    torch.manual_seed(len(name))
                    parameter.copy_(0.02 * torch.randn(parameter.shape))
        if recompute:
            captioner.checkpoint_activations()
        batch = pack([drawn_example(6, 4)], captioner.processor, **captioner.pack_options()).to(place)
        with torch.autocast(place.type, torch.bfloat16, enabled=bench.bf16):
            loss = packed_loss(captioner, batch)
        loss.backward()
        gradients = [p.grad.flatten().double().cpu() for p in captioner.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat(gradients)

    reference, expected = step("cpu", recompute=False)
    for recompute in (True, False):
        loss, gradient = step(device, recompute=recompute)
        cosine = float(torch.nn.functional.cosine_similarity(gradient, expected, dim=0))
        if abs(loss - reference) > 0.02 * reference or cosine < 0.99:
            raise RuntimeError(
                f"recompute={recompute}: loss {loss:.4f} against {reference:.4f} in float32, cosine of the gradients "
                f"{cosine:.4f}"
            )
    return f"loss {loss:.4f} ({reference:.4f} in float32), cosine of gradients {cosine:.5f}"


def train(device: str) -> str:
    """Take one step of each stage with ZeRO 1 and 3; leaves the model for the later parts."""
    from ureca.labeling.config import LabelConfig
    from ureca.labeling.job import label_corpus
    from ureca.nano.scenes.files import write_scenes
    from ureca.training.config import (
        BatchConfig,
        LoraConfig,
        OptimizerConfig,
        Stage1Config,
        Stage2Config,
        WorkersConfig,
    )
    from ureca.training.launch import fit

    shutil.rmtree(FOLDER / "train", ignore_errors=True)
    write_scenes(FOLDER / "train" / "scenes", range(4))
    label_corpus(LabelConfig(sources=(str(FOLDER / "train" / "scenes"),), actors=1), FOLDER / "train" / "labels")
    gpu = device != "cpu"
    losses = []
    for zero_stage in (1, 3):
        shared: dict[str, Any] = {
            "table": str(FOLDER / "train" / "labels" / "regions.parquet"),
            "heldout": 0.0,
            "batch": BatchConfig(images_per_step=4),
            "optimizer": OptimizerConfig(learning_rate=1e-3, epochs=1),
            "workers": WorkersConfig(num_workers=1, zero_stage=zero_stage, use_gpu=gpu, bf16=gpu),  # type: ignore[arg-type]
        }
        folder = FOLDER / "train" / f"zero{zero_stage}"
        first = fit(Stage1Config(**shared), folder / "stage1")
        second = fit(Stage2Config(**shared, init=first.model, lora=LoraConfig(rank=4)), folder / "stage2")
        losses += [first.loss_last, second.loss_last]
    for one, three in zip(losses[:2], losses[2:], strict=True):
        if abs(one - three) > 0.02 * one:
            raise RuntimeError(f"losses differ between ZeRO 1 and 3: {losses}")
    return "losses of stages 1 and 2: " + ", ".join(f"{loss:.4f}" for loss in losses[:2]) + "; equal with ZeRO 3"


def export(device: str) -> str:
    """Export the trained model and verify it."""
    import torch

    from ureca.model.exporting import export as exporting
    from ureca.model.exporting.verify import verify_export

    model = FOLDER / "train" / "zero1" / "stage2" / "model"
    if not model.is_dir():
        raise RuntimeError("needs the part train, which left no model")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    folder = exporting.export(model, FOLDER / "export", dtype=dtype)
    return verify_export(model, folder, dtype=dtype, device=device)


def engine(device: str) -> str:  # noqa: ARG001
    """Compare an engine's captions with transformers'."""
    from ureca.engine.parity import verify_engine
    from ureca.model.internvl.presets import packaged_weights

    return asyncio.run(verify_engine(packaged_weights("captioner")))


def service(device: str) -> str:  # noqa: ARG001
    """Start `ureca serve`, send one photo, and stop it."""
    import socket

    from ureca.client.client import Client
    from ureca.corpus.read import photos_directory

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ureca", "serve", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            deadline = time.monotonic() + TIMEOUT - 60
            while not client.is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("`ureca serve` did not get ready; run it by hand to see why")
                time.sleep(0.5)
            started = time.monotonic()
            photo = photos_directory() / "coffee.jpg"
            answers = client.caption(photo, [{"box": [40, 30, 200, 120]}, {"box": [300, 20, 100, 70]}])
            return f"{answers[0].caption!r} in {time.monotonic() - started:.2f} s"
    finally:
        process.terminate()
        process.wait(60)


def speed(device: str) -> str:
    """Measure packed against single sequences."""
    import torch
    from training import measure, new_bench, part_of_model

    gpu = device != "cpu"
    bench = new_bench(part_of_model(1 if gpu else 12), torch.device(device), bf16=gpu)
    [row] = measure(bench, 6, 16, [16], budget=30)
    return json.dumps({key: value for key, value in row.items() if isinstance(value, int | float)})


PARTS: dict[str, Callable[[str], str]] = {
    part.__name__: part for part in (machine, attention, train, export, engine, service, speed)
}


def run(part: str, device: str) -> dict[str, Any]:
    """Run a part in a new process; return its result, or its last error line."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--run", part, "--device", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        ok, detail = done.returncode == 0, lines[-1] if lines else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        ok, detail = False, f"not finished after {TIMEOUT} s"
    return {"part": part, "ok": ok, "seconds": round(time.monotonic() - started, 1), "detail": detail}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(PARTS[options.run](options.device))
        return
    from ureca.hardware import capture_context

    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for part in options.parts or PARTS:
        row = run(part, options.device)
        state = "ok" if row["ok"] else "FAILED"
        print(f"{part:<10} {state:<6} {row['seconds']:>6} s  {row['detail']}", flush=True)
        rows.append(row)
    result = {"context": capture_context(), "device": options.device, "parts": rows}
    (FOLDER / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


if __name__ == "__main__":
    main()
