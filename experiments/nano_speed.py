"""Training speed of nano on this machine: an early version, today's recipes, and threads by workers.

    python experiments/nano_speed.py --table runs/demo/labels        (any region table, e.g. of `make demo`)

Real trainings of a few steps, as the jobs run them (Ray Train, DeepSpeed), one after the other: regions a second are
the median over steps, the first epoch (image tokens are computed) apart from the later ones (they are kept). The first
version is this repository's own commit of that name, checked out separately, with its recipes, its nano (of the same
architecture but for the vocabulary) and the same images. Its steps of stage 2 have eight images, and today's code is
timed with such too: that is what they are compared by. Today's recipe has steps of one image, which learn more of each
but are too little for two workers to share: two cores train two seeds at once. Writes <output>/nano.json. Ten minutes
on two cores.
"""

import argparse
import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ureca.config import load_config
from ureca.corpus.table import iter_images, write_regions
from ureca.errors import InputError
from ureca.hardware import capture_context
from ureca.nano.scenes.draw import draw_scene
from ureca.runs import run_job
from ureca.storage.files import to_json, write_json
from ureca.training.config import Stage1Config, Stage2Config, WorkersConfig
from ureca.training.launch import fit
from ureca.training.monitor.metrics import read_metrics

NUM_IMAGES = 48
EPOCHS = 3
NUM_SCENES = 24

FIRST_COMMIT = "c99e6fb1a"
"""The version that shipped nano first: rows padded to the longest, a gather for each layer, float32."""
FIRST_IMAGES_PER_STEP = 8
"""In its recipe of stage 2."""
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """One training: which stage, what it is called in the table, what differs from the recipe."""

    stage: str
    settings: str
    workers: WorkersConfig
    epochs: float = EPOCHS
    images_per_step: int | None = None
    """None: as the recipe has them, or one for each worker if that is more."""


def cases(recipe: WorkersConfig) -> list[Case]:
    """The recipes of both stages, then workers by threads for stage 2."""
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
    stage1 = Case("stage1", f"recipe, {_shape(recipe)}", recipe)
    settings = f"{FIRST_IMAGES_PER_STEP} images a step, {_shape(recipe)}"
    as_first = Case("stage2", settings, recipe, images_per_step=FIRST_IMAGES_PER_STEP)
    return [stage1, as_first, Case("stage2", f"recipe, {_shape(recipe)}", recipe), *by_threads]


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
    batch = config.batch
    if case.images_per_step is not None:
        batch = dataclasses.replace(batch, images_per_step=case.images_per_step)
    elif batch.images_per_step is not None and batch.images_per_step < case.workers.num_workers:
        batch = dataclasses.replace(batch, images_per_step=case.workers.num_workers)  # one for each at least
    config = dataclasses.replace(config, optimizer=optimizer, workers=case.workers, batch=batch)
    started = time.monotonic()
    result = fit(config, directory)
    row = {
        "stage": case.stage,
        "settings": case.settings,
        **rates(directory, case.epochs),
        "seconds_with_start": round(time.monotonic() - started, 1),
        "workers": dataclasses.asdict(case.workers),
        "batch": dataclasses.asdict(batch),
    }
    return row, result.model


def rates(directory: Path, epochs: float) -> dict[str, Any]:
    """Regions a second of a finished training."""
    measured = [line["regions_per_second"] for line in read_metrics(directory / "metrics.jsonl")]
    steps_an_epoch = round(len(measured) / epochs)
    later = measured[steps_an_epoch:]
    return {
        "first_epoch": round(statistics.median(measured[1:steps_an_epoch]), 1),
        "later_epochs": round(statistics.median(later), 1) if later else None,
        "steps": len(measured),
    }


def measure_first_version(table: Path, directory: Path) -> list[dict[str, Any]]:
    """Train both stages with the code of `FIRST_COMMIT`; returns their rows of the result."""
    old_table = directory / "regions_v1.parquet"
    write_as_version_1(table, old_table)
    rows, init = [], ""
    with checkout(FIRST_COMMIT, directory / "first_version") as root:
        for stage in ("stage1", "stage2"):
            print(f"{stage}: first version", file=sys.stderr, flush=True)
            started, run = time.monotonic(), directory / f"first_{stage}"
            given = {"init": init} if init else {}
            with start_job(root, stage, config=f"{stage}_nano", table=old_table, run=run, **given) as job:
                pass
            if job.returncode:
                raise InputError(f"the first version's {stage} failed, see above.")
            init = str(run / "model")
            seconds = round(time.monotonic() - started, 1)
            rows.append(
                {"stage": stage, "settings": "first version", **rates(run, EPOCHS), "seconds_with_start": seconds}
            )
    return rows


def measure_side_by_side(table: Path, directory: Path, init: str) -> dict[str, Any]:
    """Two trainings of stage 2 at once, as two seeds are made: regions a second of both together."""
    started, runs = time.monotonic(), [directory / f"parallel{number}" for number in (0, 1)]
    settings = {"workers.num_workers": "1", "workers.threads": "1", "init": init}
    with contextlib.ExitStack() as stack:
        jobs = [
            stack.enter_context(
                start_job(ROOT, "stage2", config="nano_stage2", table=table, run=run, seed=str(seed), **settings)
            )
            for seed, run in enumerate(runs)
        ]
    if any(job.returncode for job in jobs):
        raise InputError("one of the two trainings failed, see above.")
    of_both = [rates(run, EPOCHS) for run in runs]
    return {
        "stage": "stage2",
        "settings": "recipe, two trainings at once, 1 x 1 each",
        **{name: round(sum(each[name] for each in of_both), 1) for name in ("first_epoch", "later_epochs")},
        "steps": of_both[0]["steps"],
        "seconds_with_start": round(time.monotonic() - started, 1),
    }


def start_job(root: Path, stage: str, *, config: str, table: Path, run: Path, **given: str) -> subprocess.Popen[bytes]:
    """A stage's job of the repository at `root`."""
    settings = {
        "heldout": "0",
        "optimizer.epochs": str(EPOCHS),
        "run_directory": str(run),
        "table": str(table),
        **given,
    }
    return subprocess.Popen(
        [
            *(sys.executable, f"jobs/train_{stage}.py", "--config", config),
            *(part for name, value in settings.items() for part in (f"--{name}", value)),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "platform")},
        stdout=sys.stderr,
    )


@contextlib.contextmanager
def checkout(commit: str, directory: Path) -> Iterator[Path]:
    """The repository as it was at `commit`, in `directory` for a while."""
    git = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run([*git, "add", "--quiet", "--detach", str(directory), commit], check=False)
    if added.returncode:
        raise InputError(f"commit {commit} is not in this clone. Get its history: git fetch --unshallow.")
    try:
        yield directory
    finally:
        subprocess.run([*git, "remove", "--force", str(directory)], check=True)


def write_as_version_1(table: Path, target: Path) -> None:
    """A region table as the first version reads it: without the columns that version 2 added."""
    read = pq.read_table(table).drop_columns(["notes"])
    provenance = read.column("provenance").combine_chunks()
    kept = [field for field in provenance.type if field.name not in ("requests", "retries", "describer_seconds")]
    old = pa.StructArray.from_arrays([provenance.field(field.name) for field in kept], fields=kept)
    place = read.schema.get_field_index("provenance")
    read = read.set_column(place, pa.field("provenance", old.type), old)
    pq.write_table(read.replace_schema_metadata({b"ureca.region_table.version": b"1"}), target)


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
        first = measure_first_version(table, Path(folder))
        init = ""
        for number, case in enumerate(cases(recipe)):
            print(f"{case.stage}: {case.settings}", file=sys.stderr, flush=True)
            row, model = measure(case, table, Path(folder) / str(number), init)
            init = model if case.stage == "stage1" else init
            rows.append(row)
        print("stage2: two trainings at once", file=sys.stderr, flush=True)
        rows.append(measure_side_by_side(table, Path(folder), init))
    trained = [*first, *rows]
    by_stage = {row["stage"]: row["later_epochs"] for row in first}
    payload = {
        "context": capture_context(),
        "images": NUM_IMAGES,
        "cases": trained,
        "over_first_version": {
            "stage1": round(rows[0]["later_epochs"] / by_stage["stage1"], 2),
            "stage2, as many images a step": round(rows[1]["later_epochs"] / by_stage["stage2"], 2),
            "stage2, two trainings of the recipe": round(rows[-1]["later_epochs"] / by_stage["stage2"], 2),
        },
        "scenes_a_second": round(scenes_a_second(), 1),
    }
    Path(options.output).mkdir(parents=True, exist_ok=True)
    write_json(str(Path(options.output) / "nano.json"), payload)
    print(as_table(trained))
    print(f"over the first version: {payload['over_first_version']}")
    print(f"scenes drawn a second, one process: {payload['scenes_a_second']}")
    print(to_json(payload))


if __name__ == "__main__":
    run_job(main)
