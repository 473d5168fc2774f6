"""A run whose checkpoints are in S3: what else goes there, so that its machines need no file system in common.

    <storage>/table_index/        put by the driver before workers start, taken by each machine's
              init_3f9c41d2a0b7/  likewise: the model directory to start from, named by its content
              eval/images.json   likewise
                    step_000050/  put by each worker after its part of a look, taken by the driver at the end
              metrics.jsonl       put by worker 0 with each checkpoint, taken by worker 0 where it goes on elsewhere
              worker_log.jsonl         put by worker 0 when it has noted something, taken where metrics are
              model/              put by worker 0 at the end, taken by the driver, which adds its record
              model_best/, training.png    put by the driver at the end

Each function does nothing where `checkpoints.storage` is not in S3: a local one is the run's folder's neighbor.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ureca.model.captioner import CONFIG_FILE
from ureca.model.exporting.export import TRAINING_FILE
from ureca.storage.files import copy_folder, exists, file_bytes, read_bytes, write_bytes
from ureca.training.checkpoint.best import BEST_DIRECTORY
from ureca.training.checkpoint.files import MODEL_DIRECTORY
from ureca.training.data.table_index import INDEX_DIRECTORY, INDEX_RECORD
from ureca.training.monitor.inloop_eval import EVAL_DIRECTORY, IMAGES_FILE
from ureca.training.monitor.metrics import FILE, last_line
from ureca.training.monitor.tail import WORKER_LOG_FILE
from ureca.training.plan import Plan

_WATCHED = f"{EVAL_DIRECTORY}/{IMAGES_FILE}"


def put_inputs(plan: Plan) -> None:
    """What workers begin with: the table's index, the model directory to start from, which images they look at."""
    if _in_s3(plan):
        if plan.init_copy and not exists(f"{_storage(plan)}/{plan.init_copy}/{CONFIG_FILE}"):
            _put_folder(plan, plan.init_copy)
        copy_folder(Path(plan.directory) / INDEX_DIRECTORY, f"{_storage(plan)}/{INDEX_DIRECTORY}", last=INDEX_RECORD)
        if plan.eval.every_steps:
            _put(plan, _WATCHED)


def take_inputs(plan: Plan) -> None:
    """Where this machine has others or none. Several workers may do so at once: each file is replaced in one piece."""
    if _in_s3(plan):
        if plan.init_copy and not (Path(plan.directory) / plan.init_copy / CONFIG_FILE).is_file():
            _take_folder(plan, plan.init_copy)
        if _differs(plan, f"{INDEX_DIRECTORY}/{INDEX_RECORD}"):
            mine = Path(plan.directory) / INDEX_DIRECTORY
            copy_folder(f"{_storage(plan)}/{INDEX_DIRECTORY}", mine, last=INDEX_RECORD)
        if plan.eval.every_steps and _differs(plan, _WATCHED):
            _take(plan, _WATCHED)


def put_look(plan: Plan, files: Sequence[Path]) -> None:
    """What a worker wrote of a look."""
    if _in_s3(plan):
        for file in files:
            _put(plan, str(file.relative_to(plan.directory)))


def put_metrics(plan: Plan) -> None:
    if _in_s3(plan):
        _put(plan, FILE)


def take_metrics(plan: Plan, step: int) -> None:
    """The lines up to `step`, where this machine has not written them itself."""
    if _in_s3(plan) and _last_step(plan) < step and exists(f"{_storage(plan)}/{FILE}"):
        _take(plan, FILE)


def put_notes(plan: Plan) -> None:
    if _in_s3(plan) and (Path(plan.directory) / WORKER_LOG_FILE).is_file():
        _put(plan, WORKER_LOG_FILE)


def take_notes(plan: Plan) -> None:
    """All lines, where this machine has fewer."""
    if _in_s3(plan):
        mine = Path(plan.directory) / WORKER_LOG_FILE
        if (file_bytes(f"{_storage(plan)}/{WORKER_LOG_FILE}") or 0) > (mine.stat().st_size if mine.is_file() else 0):
            _take(plan, WORKER_LOG_FILE)


def put_model(plan: Plan) -> None:
    if _in_s3(plan):
        _put_folder(plan, MODEL_DIRECTORY)


def take_results(plan: Plan, num_steps: int) -> None:
    """Looks, metrics and model of a finished run, as far as they were made on other machines than this process's."""
    if not _in_s3(plan):
        return
    directory = Path(plan.directory)
    if plan.eval.every_steps:
        copy_folder(f"{_storage(plan)}/{EVAL_DIRECTORY}", directory / EVAL_DIRECTORY)
    if _last_step(plan) < num_steps:
        shutil.rmtree(directory / MODEL_DIRECTORY, ignore_errors=True)
        _take_folder(plan, MODEL_DIRECTORY)
        take_metrics(plan, num_steps)


def put_results(plan: Plan, *files: str) -> None:
    """What the driver adds to a finished run: the record of its model, the model of its best checkpoint, `files`."""
    if _in_s3(plan):
        for file in (f"{MODEL_DIRECTORY}/{TRAINING_FILE}", *files):
            _put(plan, file)
        if (Path(plan.directory) / BEST_DIRECTORY).is_dir():
            _put_folder(plan, BEST_DIRECTORY)


def _in_s3(plan: Plan) -> bool:
    return "://" in plan.checkpoints.storage


def _storage(plan: Plan) -> str:
    return plan.checkpoints.storage


def _put(plan: Plan, file: str) -> None:
    write_bytes(f"{_storage(plan)}/{file}", (Path(plan.directory) / file).read_bytes())


def _take(plan: Plan, file: str) -> None:
    write_bytes(Path(plan.directory) / file, read_bytes(f"{_storage(plan)}/{file}"))


def _put_folder(plan: Plan, name: str) -> None:
    copy_folder(Path(plan.directory) / name, f"{_storage(plan)}/{name}", last=CONFIG_FILE)


def _take_folder(plan: Plan, name: str) -> None:
    copy_folder(f"{_storage(plan)}/{name}", Path(plan.directory) / name, last=CONFIG_FILE)


def _differs(plan: Plan, file: str) -> bool:
    """Whether this machine lacks the file as it is in S3."""
    mine = Path(plan.directory) / file
    return not mine.is_file() or mine.read_bytes() != read_bytes(f"{_storage(plan)}/{file}")


def _last_step(plan: Plan) -> int:
    line = last_line(Path(plan.directory) / FILE)
    return int(line["step"]) if line else 0
