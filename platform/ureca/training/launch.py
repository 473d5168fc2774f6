"""Driver of a training run: check everything, start the workers, show progress, collect the results.

fit(config)   Plan, table index, number of steps          everything that can be refused is refused here
  _run        Ray Train starts training/worker.py         a thread; this one prints progress and the worker log
  results     model, best model, their records, a plot    pulled from S3 when workers ran elsewhere
"""

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ureca.cluster import connect
from ureca.config import config_to_dict
from ureca.errors import StorageError
from ureca.runs import Progress
from ureca.storage.files import filesystem, write_bytes
from ureca.training.checkpoint.best import BEST_DIRECTORY, BestModel, make_best_model
from ureca.training.checkpoint.files import (
    CHECKPOINTS_DIRECTORY,
    MODEL_DIRECTORY,
    completed_steps,
    delete_all_checkpoints,
    delete_unindexed_checkpoints,
    repair_checkpoint_index,
)
from ureca.training.checkpoint.provenance import last_eval_scores, record_training
from ureca.training.checkpoint.s3_sync import RunStorage
from ureca.training.config import CheckpointConfig, StageConfig, WorkersConfig
from ureca.training.data.loader import make_sampler
from ureca.training.data.table_index import prepare_index
from ureca.training.monitor.inloop_eval import select_eval_images
from ureca.training.monitor.metrics import FILE, loss_first_last, read_metrics
from ureca.training.monitor.tail import MetricsTailer, WorkerLogReader, progress_fields, tail_metrics
from ureca.training.monitor.trackers import delete_tensorboard_files, refuse_missing_trackers
from ureca.training.plan import Plan
from ureca.training.sizing.placement import require_room
from ureca.viewer import plots

_POLL_SECONDS = 1.0
_PLOT_FILE = "training.png"


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Model directory of a finished training, and figures for the run's summary."""

    model: str
    """Path of the trained model directory."""
    images: int
    """Labeled images trained on."""
    steps: int
    regions: int
    """Regions trained on, repetitions included."""
    loss_first: float
    """Mean cross-entropy per caption token, in nats, over the first twentieth of the steps."""
    loss_last: float
    """The same over the last twentieth."""
    regions_per_second: float
    """Throughput of all workers while training; start-up and interruptions excluded."""
    heldout: dict[str, float]
    """Scores of the last in-loop evaluation; empty without one."""
    best: dict[str, Any]
    """`model`, `step` and `score` of the best checkpoint with `checkpoints.keep_best`; otherwise empty."""


def fit(config: StageConfig, directory: Path) -> TrainingResult:
    """Train a stage on Ray with its files in `directory`; resume an interrupted run, return a finished one.

    Raises:
        ConfigError, CheckpointError, InputError: before any process starts, where the cause is known by then.
        TrainingError: the loss or a gradient became non-finite.
    """
    plan = Plan.from_config(config, directory)
    refuse_missing_trackers(plan.eval.trackers)
    storage = RunStorage(plan.directory, plan.checkpoints.storage)
    done = completed_steps(storage.checkpoints, plan.identity())
    processor = plan.processor()
    table = prepare_index(
        plan.table,
        Path(plan.directory),
        processor,
        heldout=plan.heldout,
        heldout_seed=plan.heldout_seed,
        rejected_per_region=plan.preference.rejected_per_region if plan.preference else None,
        has_begun=done > 0,
    )
    num_steps = make_sampler(plan.loader_settings(), table, processor).num_steps(plan.optimizer.epochs)
    model = directory / MODEL_DIRECTORY
    if done == num_steps and model.is_dir():
        print(f"train  {model} exists already: all {num_steps} steps are done", file=sys.stderr)
    else:
        if not done:  # an earlier start may have failed before its first checkpoint
            delete_all_checkpoints(storage.checkpoints)
            (directory / FILE).unlink(missing_ok=True)
            delete_tensorboard_files(directory)
        if plan.eval.every_steps:
            select_eval_images(
                plan.table, plan.directory, plan.eval, heldout=plan.heldout, heldout_seed=plan.heldout_seed
            )
        evaluates = plan.eval.every_steps > 0
        storage.push_inputs(init_copy=plan.init_copy, evaluates=evaluates)
        with tail_metrics(Path(plan.directory), plan.eval.trackers, plan.identity(), done) as tailer:
            _run(plan, storage, num_steps, done, tailer)
            delete_unindexed_checkpoints(storage.checkpoints)
            storage.pull_results(num_steps, evaluates=evaluates)  # before the trackers get the last lines
    best = _best_model(plan, storage)
    lines = read_metrics(directory / FILE)
    result = _result(lines, model, len(table), best)
    record = partial(
        record_training,
        config,
        stage=plan.stage,
        table=plan.table,
        init_directory=plan.init_directory if plan.init else "",
        figures=asdict(result),
        data={"images": len(table), "regions": int(table.images["regions"].sum())},
    )
    record(model=model, eval_scores=result.heldout, weights={"step": num_steps})
    if best:
        until_best = [line for line in lines if line["step"] <= best.step]
        weights = {"step": best.step, "best_by": plan.eval.score, "score": best.score}
        record(model=best.directory, eval_scores=last_eval_scores(until_best), weights=weights)
    write_bytes(directory / _PLOT_FILE, plots.training(lines))
    storage.push_results(_PLOT_FILE)
    return result


def _best_model(plan: Plan, storage: RunStorage) -> BestModel | None:
    if not plan.checkpoints.keep_best:
        return None
    best = make_best_model(storage.directory, storage.checkpoints, plan.eval.score)
    if best is None:
        print(
            f"train  no checkpoint has a score, so {BEST_DIRECTORY} is not written: make --checkpoints.every_steps a "
            "multiple of --eval.every_steps",
            file=sys.stderr,
        )
    return best


def _run(plan: Plan, storage: RunStorage, num_steps: int, done: int, tailer: MetricsTailer) -> None:
    connect()
    require_room(plan.workers)
    if repair_checkpoint_index(storage.checkpoints):
        print(
            "train  Ray Train's checkpoint index was unreadable and is rebuilt; the checkpoints are unchanged",
            file=sys.stderr,
        )
    # Workers stay in the driver's working folder: a table may name its images by relative paths.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if not plan.workers.use_gpu:  # otherwise DeepSpeed warns that it finds no GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Imported late: Ray reads the environment variables above when it is first imported.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from ureca.training.failures import StopOnUserErrors, find_user_error
    from ureca.training.worker import train_worker

    workers = plan.workers
    if workers.bf16 and not workers.use_gpu and not computes_in_bfloat16(torch.cpu.get_capabilities()):
        print("train  this CPU has no bfloat16 instructions: --workers.bf16=false is faster here", file=sys.stderr)
    start = f"at step {done + 1} of {num_steps}" if done else f"{num_steps} steps"
    print(f"train  starting {workers.num_workers} workers, {start}", file=sys.stderr, flush=True)
    remote, storage_path = filesystem(plan.checkpoints.storage or plan.directory)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config_to_dict(plan),
        scaling_config=ScalingConfig(num_workers=workers.num_workers, use_gpu=workers.use_gpu),
        run_config=RunConfig(  # type: ignore[call-arg]  # Ray's types are those of Train V1
            name=CHECKPOINTS_DIRECTORY,
            storage_path=storage_path,
            storage_filesystem=remote,
            checkpoint_config=ray_checkpoint_config(plan.checkpoints),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            callbacks=[StopOnUserErrors()],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": worker_environment(workers)},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    log = WorkerLogReader(plan.directory)
    outcome: dict[str, BaseException] = {}

    def train() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # raised again in the main thread
            outcome["error"] = error

    # In a thread, because in the main thread Ray Train catches Ctrl-C and ends the job with exit code 0.
    thread = threading.Thread(target=train, name="ray-train", daemon=True)
    thread.start()
    progress = Progress("train", num_steps, counted="step")
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        _print_events(log)
        if (line := tailer.poll()) is not None:
            progress.update(line["step"], *progress_fields(line))
    progress.close()
    with suppress(StorageError):  # the outcome of the training matters more than its log
        storage.pull_log()
    _print_events(log)
    if "error" in outcome:
        raise find_user_error(outcome["error"]) from outcome["error"]


def _print_events(log: WorkerLogReader) -> None:
    for text in log.new():
        print(f"train  {text}", file=sys.stderr, flush=True)


def computes_in_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Return whether a CPU has bfloat16 instructions (AMX, AVX512-BF16), given `torch.cpu.get_capabilities()`."""
    return any("bf16" in name and bool(has) for name, has in capabilities.items())


def ray_checkpoint_config(checkpoints: CheckpointConfig) -> Any:
    """Return Ray Train's retention policy. Ranked by score, it keeps the best checkpoints and the last one."""
    from ray.train import CheckpointConfig as RayCheckpointConfig

    return RayCheckpointConfig(
        num_to_keep=checkpoints.keep_best or checkpoints.num_to_keep,
        checkpoint_score_attribute="score" if checkpoints.keep_best else None,
    )


def worker_environment(workers: WorkersConfig) -> dict[str, str]:
    """Return the environment variables of a training worker."""
    environment = {
        "OMP_NUM_THREADS": str(workers.threads),
        "TOKENIZERS_PARALLELISM": "false",
        # oneDNN keeps compiled code for every batch shape: with its default limit of 1024 a worker grew to 5 GB.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    }
    if not workers.use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def _result(lines: list[dict[str, Any]], model: Path, num_images: int, best: BestModel | None) -> TrainingResult:
    first, last = loss_first_last(lines)
    regions = sum(line["num_regions"] for line in lines)
    seconds = sum(line["num_regions"] / line["regions_per_second"] for line in lines)
    return TrainingResult(
        model=str(model),
        images=num_images,
        steps=len(lines),
        regions=regions,
        loss_first=round(first, 4),
        loss_last=round(last, 4),
        regions_per_second=round(regions / seconds, 1),
        heldout=last_eval_scores(lines),
        best={"model": str(best.directory), "step": best.step, "score": round(best.score, 4)} if best else {},
    )
