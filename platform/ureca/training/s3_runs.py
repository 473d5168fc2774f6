"""A run whose checkpoints are in S3: what else goes there, so that its machines need no file system in common.

    <storage>/table_index/   put by the driver before workers start, taken by each machine's
              metrics.jsonl  put by worker 0 with each checkpoint, taken by worker 0 where it goes on elsewhere
              model/         put by worker 0 at the end, taken by the driver

Each function does nothing where `checkpoints.storage` is not in S3: a local one is the run's folder's neighbor.
"""

import shutil
from pathlib import Path

from ureca.io import copy_folder, exists, read_bytes, write_bytes
from ureca.model.captioner import CONFIG_FILE
from ureca.training.checkpoints import MODEL_DIRECTORY
from ureca.training.metrics import FILE, last_line
from ureca.training.plan import Plan
from ureca.training.table_index import INDEX_DIRECTORY, INDEX_RECORD

__all__ = ["put_index", "put_metrics", "put_model", "take_index", "take_metrics", "take_results"]


def put_index(plan: Plan) -> None:
    if _in_s3(plan):
        copy_folder(Path(plan.directory) / INDEX_DIRECTORY, f"{_storage(plan)}/{INDEX_DIRECTORY}", last=INDEX_RECORD)


def take_index(plan: Plan) -> None:
    """Where this machine has none. Several workers may do so at once: each file is replaced in one piece."""
    mine = Path(plan.directory) / INDEX_DIRECTORY
    if _in_s3(plan) and not (mine / INDEX_RECORD).is_file():
        copy_folder(f"{_storage(plan)}/{INDEX_DIRECTORY}", mine, last=INDEX_RECORD)


def put_metrics(plan: Plan) -> None:
    if _in_s3(plan):
        write_bytes(f"{_storage(plan)}/{FILE}", (Path(plan.directory) / FILE).read_bytes())


def take_metrics(plan: Plan, step: int) -> None:
    """The lines up to `step`, where this machine has not written them itself."""
    mine = Path(plan.directory) / FILE
    if _in_s3(plan) and _last_step(mine) < step and exists(f"{_storage(plan)}/{FILE}"):
        write_bytes(mine, read_bytes(f"{_storage(plan)}/{FILE}"))


def put_model(plan: Plan) -> None:
    if _in_s3(plan):
        copy_folder(Path(plan.directory) / MODEL_DIRECTORY, f"{_storage(plan)}/{MODEL_DIRECTORY}", last=CONFIG_FILE)


def take_results(plan: Plan, num_steps: int) -> None:
    """Metrics and model of a finished run, where worker 0 was on another machine than this process."""
    directory = Path(plan.directory)
    if _in_s3(plan) and _last_step(directory / FILE) < num_steps:
        take_metrics(plan, num_steps)
        shutil.rmtree(directory / MODEL_DIRECTORY, ignore_errors=True)
        copy_folder(f"{_storage(plan)}/{MODEL_DIRECTORY}", directory / MODEL_DIRECTORY, last=CONFIG_FILE)


def _in_s3(plan: Plan) -> bool:
    return "://" in plan.checkpoints.storage


def _storage(plan: Plan) -> str:
    return plan.checkpoints.storage


def _last_step(metrics: Path) -> int:
    line = last_line(metrics)
    return int(line["step"]) if line else 0
