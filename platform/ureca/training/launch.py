"""The driver's side of training: start the workers, show where they are, hand back what they made."""

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
from ray.train import UserCallback

from ureca.cluster import connect
from ureca.config import config_to_dict
from ureca.errors import StorageError, UrecaError
from ureca.runs import Progress
from ureca.storage.files import filesystem, is_full_disk, write_bytes
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

_LOOK_EVERY_SECONDS = 1.0
_PLOT_FILE = "training.png"


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training leaves: its model directory, and figures for the run's summary."""

    model: str
    """Folder of the trained model."""
    images: int
    """Labeled images it learned from."""
    steps: int
    regions: int
    """Regions shown, repetitions counted."""
    loss_first: float
    """Mean over the first twentieth of the steps: cross-entropy a caption token, in nats."""
    loss_last: float
    regions_per_second: float
    """Over all workers, while training; start and interruptions left out."""
    heldout: dict[str, float]
    """Scores of the last look at held-out images; empty without one."""
    best: dict[str, Any]
    """Of the best checkpoint, where `checkpoints.keep_best` asks for it: `model`, `step`, `score`; else empty."""


def fit(config: StageConfig, directory: Path) -> TrainingResult:
    """Train a stage on Ray, with its files in `directory`; there already begun, go on; there finished, don't.

    Raises:
        ConfigError, CheckpointError, InputError: before any process starts, as far as they can be known then.
        TrainingError: the loss or a gradient became non-finite.
    """
    plan = Plan.of(config, directory)
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
        print(f"train  {model} is there already: all {num_steps} steps were done", file=sys.stderr)
    else:
        if not done:  # an earlier start that came to no checkpoint
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
            storage.pull_results(num_steps, evaluates=evaluates)  # before trackers get what has come last
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
            f"train  no checkpoint has a score, so there is no {BEST_DIRECTORY}: let --eval.every_steps and "
            "--checkpoints.every_steps fall on the same steps",
            file=sys.stderr,
        )
    return best


def _run(plan: Plan, storage: RunStorage, num_steps: int, done: int, tailer: MetricsTailer) -> None:
    connect()
    require_room(plan.workers)
    if repair_checkpoint_index(storage.checkpoints):
        print(
            "train  Ray Train's list of checkpoints could not be read and is made anew; the checkpoints are as they "
            "were",
            file=sys.stderr,
        )
    # Workers stay in the driver's working folder: a table may name its images by relative paths.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if not plan.workers.use_gpu:  # or DeepSpeed, imported here too, warns that it finds no GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Only now: what Ray reads from the environment has to be settled before it is first imported.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from ureca.training.worker import train_worker

    workers = plan.workers
    if workers.bf16 and not workers.use_gpu and not computes_in_bfloat16(torch.cpu.get_capabilities()):
        print("train  this CPU has no bfloat16 instructions: --workers.bf16=false is faster on it", file=sys.stderr)
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
            callbacks=[EndAtUsersErrors()],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": worker_environment(workers)},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    notes = WorkerLogReader(plan.directory)
    outcome: dict[str, BaseException] = {}

    def train() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the thread that waits
            outcome["error"] = error

    # Not in the main thread: there Ray Train would take Ctrl-C for itself and end the job with exit code 0.
    thread = threading.Thread(target=train, name="ray-train", daemon=True)
    thread.start()
    progress = Progress("train", num_steps, counted="step")
    while thread.is_alive():
        thread.join(_LOOK_EVERY_SECONDS)
        _tell(notes)
        if (line := tailer.poll()) is not None:
            progress.update(line["step"], *progress_fields(line))
    progress.close()
    with suppress(StorageError):  # how the training ended is what must be told
        storage.pull_log()
    _tell(notes)
    if "error" in outcome:
        raise users_error(outcome["error"]) from outcome["error"]


def _tell(notes: WorkerLogReader) -> None:
    for text in notes.new():
        print(f"train  {text}", file=sys.stderr, flush=True)


def computes_in_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Whether a CPU, by `torch.cpu.get_capabilities()`, multiplies in bfloat16 itself (AMX, AVX512-BF16, ...)."""
    return any("bf16" in name and bool(has) for name, has in capabilities.items())


def ray_checkpoint_config(checkpoints: CheckpointConfig) -> Any:
    """Ray Train's own, which throws checkpoints away. By a score it keeps the best, and the last beside them."""
    from ray.train import CheckpointConfig as RayCheckpointConfig

    return RayCheckpointConfig(
        num_to_keep=checkpoints.keep_best or checkpoints.num_to_keep,
        checkpoint_score_attribute="score" if checkpoints.keep_best else None,
    )


def worker_environment(workers: WorkersConfig) -> dict[str, str]:
    environment = {
        "OMP_NUM_THREADS": str(workers.threads),
        "TOKENIZERS_PARALLELISM": "false",
        # Each batch has other shapes, for each of which oneDNN keeps compiled code: at its own limit, 1024, a worker
        # grew to 5 GB.
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


class EndAtUsersErrors(UserCallback):
    """Lives in Ray Train's controller, which does not go on after an error raised here."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raise what a user has to mend."""
        for failure in worker_exceptions.values():
            error = _of_user(failure)
            if error is not None and not isinstance(error, StorageError):
                raise error


def users_error(error: BaseException) -> BaseException:
    """The error that was raised for the user, out of what Ray Train wraps it in; else as it came."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    controller = getattr(error, "controller_failure", None)
    for failure in [*failures.values(), *([controller] if controller else [])]:
        if (found := _of_user(failure)) is not None:
            return found
    if controller is not None and is_full_disk(controller):
        return StorageError(
            f"Ray Train can't write its list of checkpoints, the disk is full ({controller}). Free some space; the "
            "same command goes on from the newest checkpoint."
        )
    return error


def _of_user(failure: BaseException) -> UrecaError | None:
    for candidate in (failure, getattr(failure, "_base_exc", None), getattr(failure, "cause", None)):
        if isinstance(candidate, UrecaError):
            return candidate
    return None
