"""How fast nano trains on this machine: the first version's settings beside the recipes', and threads by workers.

    python benchmarks/nano.py --table runs/demo/labels        (the region table that `make demo` leaves; or any other)

Real trainings of a few steps, as the jobs run them (Ray Train, DeepSpeed), one after the other: regions a second are
the median over steps, the first epoch (image tokens are computed) apart from the later ones (they are kept). Writes
<output>/nano.json. Under ten minutes on two cores.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ureca.config import load_config
from ureca.corpus import iter_images, write_regions
from ureca.errors import InputError
from ureca.io import to_json, write_json
from ureca.machine import capture_context
from ureca.runs import run_job
from ureca.scenes import draw_scene
from ureca.training import Stage1Config, Stage2Config, fit
from ureca.training.config import BatchConfig, WorkersConfig
from ureca.training.metrics import read_metrics

NUM_IMAGES = 48
EPOCHS = 3
NUM_SCENES = 24

RECORDED = {"stage1": 75.0, "stage2": 64.0}
"""Regions a second of the first version, two workers with one thread each, two cores of a Xeon with AMX: seen in the
demo of 2026-11-23. Its way of packing (rows padded to the longest, a gather for each layer) no longer exists."""

FIRST = WorkersConfig(num_workers=2, threads=1, bf16=False, image_tokens_mb=0)
"""The first version's settings, as far as they can be set now."""
FIRST_BATCH = BatchConfig(images_per_step=8, tokens_per_device=8192, regions_per_image=16)


@dataclass(frozen=True)
class Case:
    """One training: which stage, what it is called in the table, what differs from the recipe."""

    stage: str
    settings: str
    workers: WorkersConfig
    batch: BatchConfig | None = None
    """In place of the recipe's."""
    epochs: float = EPOCHS


def cases(recipe: WorkersConfig) -> list[Case]:
    """Settings of the first version and of the recipe for both stages, then workers by threads for stage 2."""
    shapes = [(1, 1, EPOCHS), (1, 2, EPOCHS), (2, 2, 1)]
    by_threads = [
        Case(
            "stage2",
            f"recipe, workers x threads {workers} x {threads}",
            dataclasses.replace(recipe, num_workers=workers, threads=threads),
            epochs=epochs,
        )
        for workers, threads, epochs in shapes
        if (workers, threads) != (recipe.num_workers, recipe.threads)
    ]
    both = [
        case
        for stage in ("stage1", "stage2")
        for case in (
            Case(stage, "first version's settings, 2 x 1", FIRST, FIRST_BATCH),
            Case(stage, f"recipe, {_shape(recipe)}", recipe),
        )
    ]
    return both + by_threads


def _shape(workers: WorkersConfig) -> str:
    return f"{workers.num_workers} x {workers.threads}"


def measure(case: Case, table: Path, directory: Path, init: str) -> tuple[dict[str, Any], str]:
    """Train the case in `directory`; returns its row of the result and the trained model's folder."""
    arguments = [f"--config=nano_{case.stage}", f"--table={table}", "--heldout=0"]
    config: Stage1Config | Stage2Config
    if case.stage == "stage1":
        config = load_config(Stage1Config, arguments)
    else:
        config = load_config(Stage2Config, [*arguments, f"--init={init}"])
    optimizer = dataclasses.replace(config.optimizer, epochs=case.epochs)
    batch = case.batch or config.batch
    if batch.images_per_step is not None and batch.images_per_step < case.workers.num_workers:
        batch = dataclasses.replace(batch, images_per_step=case.workers.num_workers)  # one for each at least
    config = dataclasses.replace(config, optimizer=optimizer, workers=case.workers, batch=batch)
    started = time.monotonic()
    result = fit(config, directory)
    lines = read_metrics(directory / "metrics.jsonl")
    unit, amount = config.batch.step_size
    assert unit == "images"
    steps_an_epoch = NUM_IMAGES // amount
    rates = [line["regions_per_second"] for line in lines]
    later = rates[steps_an_epoch:]
    row = {
        "stage": case.stage,
        "settings": case.settings,
        "first_epoch": round(statistics.median(rates[1:steps_an_epoch]), 1),
        "later_epochs": round(statistics.median(later), 1) if later else None,
        "steps": len(rates),
        "seconds_with_start": round(time.monotonic() - started, 1),
        "workers": dataclasses.asdict(case.workers),
        "batch": dataclasses.asdict(config.batch),
    }
    return row, result.model


def small_table(source: str, target: Path) -> None:
    """The first labeled images of a region table, in one file."""
    labeled = (row for row in iter_images(source) if row.status == "labeled")
    count = write_regions(target, islice(labeled, NUM_IMAGES))
    if count < NUM_IMAGES:
        raise InputError(f"{source}: {count} labeled images, the benchmark needs {NUM_IMAGES}. Name another --table.")


def scenes_a_second() -> float:
    """Drawing of scenes with their masks, trees and attributes, in one process."""
    draw_scene(0)
    started = time.monotonic()
    for seed in range(1, NUM_SCENES + 1):
        draw_scene(seed)
    return NUM_SCENES / (time.monotonic() - started)


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    head = f"{'stage':8}{'settings':44}{'first epoch':>12}{'later':>9}   regions/s"
    lines = [
        f"{row['stage']:8}{row['settings']:44}{row['first_epoch']:>12}{row['later_epochs'] or '':>9}" for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="runs/demo/labels", help="region table to take images from")
    parser.add_argument("--output", default="runs/benchmarks", help="folder for nano.json")
    options = parser.parse_args()
    recipe = load_config(Stage1Config, ["--config=nano_stage1"]).workers
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "regions.parquet"
        small_table(options.table, table)
        init = ""
        for number, case in enumerate(cases(recipe)):
            print(f"{case.stage}: {case.settings}", file=sys.stderr, flush=True)
            row, model = measure(case, table, Path(folder) / str(number), init)
            init = model if case.stage == "stage1" else init
            rows.append(row)
    speedup = {
        stage: round(now["later_epochs"] / first["later_epochs"], 2)
        for stage, first, now in (("stage1", rows[0], rows[1]), ("stage2", rows[2], rows[3]))
    }
    payload = {
        "context": capture_context(),
        "images": NUM_IMAGES,
        "cases": rows,
        "recipe_over_first_settings": speedup,
        "recorded_of_first_version": RECORDED,
        "scenes_a_second": round(scenes_a_second(), 1),
    }
    Path(options.output).mkdir(parents=True, exist_ok=True)
    write_json(str(Path(options.output) / "nano.json"), payload)
    print(as_table(rows))
    print(f"scenes drawn a second, one process: {payload['scenes_a_second']}")
    print(to_json(payload))


if __name__ == "__main__":
    run_job(main)
