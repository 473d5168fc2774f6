"""Training worker: build the model, resume from the latest checkpoint, run the steps, save.

    step k:  prefetched packed microbatches (data/loader.py)  -> token counts of the step (all-reduce)
             -> forward and backward per microbatch           -> clip, AdamW -> loss of the step

Ray Train starts one process per worker and joins them in a process group (gloo on CPUs, nccl on GPUs). DeepSpeed
partitions optimizer states, gradients or weights among them.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from safetensors import SafetensorError
from torch import Tensor

from ureca.config import config_from_dict
from ureca.model.captioner import Captioner
from ureca.storage.files import is_full_disk
from ureca.storage.local import atomic_folder
from ureca.training.checkpoint.best import replace_weights
from ureca.training.checkpoint.files import MODEL_DIRECTORY
from ureca.training.checkpoint.optimizer_state import gather, load_checkpoint, report_checkpoint, restore
from ureca.training.checkpoint.s3_sync import RunStorage
from ureca.training.data.loader import BatchLoader, Step
from ureca.training.deepspeed import (
    TrainingError,
    deepspeed_config,
    learning_rate,
    loss_for_backward,
    parameter_groups,
    refuse_non_finite,
)
from ureca.training.monitor.inloop_eval import InLoopEvaluator
from ureca.training.monitor.metrics import MetricsWriter
from ureca.training.monitor.throughput import WORK, Throughput, peak_flops
from ureca.training.objectives import CaptionLoss, Objective, PreferenceLoss
from ureca.training.plan import Plan


@dataclass(frozen=True)
class _StepResult:
    """Outcome of one optimizer step."""

    loss: float
    """Loss of the step, as the objective defines it."""
    grad_norm: float
    """Before clipping."""
    counts: dict[str, int]
    """Counts of the objective: `tokens`, `regions`, ..."""
    figures: dict[str, float]
    """Further metrics of the objective."""
    work: dict[str, float]
    """Work of all workers: `flops`, `sequence_tokens`, `places` (token slots, padding included), and `data_wait`, the
    mean seconds that a worker waited for its batches."""


def train_worker(settings: dict[str, Any]) -> None:
    """Train a plan (`config_to_dict(plan)`) from its latest checkpoint to the end. Ray Train calls this.

    Raises:
        CheckpointError: the latest checkpoint belongs to another base or plan.
        TrainingError: loss or gradient became non-finite (the step is named), or a disk is full.
        InputError: an image or a caption can't be read.
    """
    plan = config_from_dict(Plan, settings, where="training plan")
    if not plan.workers.use_gpu:
        # Without operators to compile, DeepSpeed uses gloo. Otherwise it compiles a shared-memory all-reduce at run
        # time, which takes a minute, or fails without a compiler.
        deepspeed.ops.__compatible_ops__ = {}
    worker = _Worker(plan)
    try:
        worker.train()
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        raise TrainingError(
            f"{plan.directory}: can't be written, the disk is full ({error}). Free some space and run the same command "
            "again; it resumes from the newest checkpoint."
        ) from error
    finally:
        worker.engine.destroy()


class _Worker:
    """One training process: the model in a DeepSpeed engine, and the worker's share of every step."""

    def __init__(self, plan: Plan) -> None:
        context = ray.train.get_context()
        self.rank, self.num_workers = context.get_world_rank(), context.get_world_size()
        self.plan = plan
        self.storage = RunStorage(plan.directory, plan.checkpoints.storage)
        self.storage.pull_inputs(init_copy=plan.init_copy, evaluates=plan.eval.every_steps > 0)
        self.captioner: Captioner = plan.captioner()
        self.batches = BatchLoader(
            Path(plan.directory), plan.loader_settings(), self.captioner, rank=self.rank, num_workers=self.num_workers
        )
        self.objective: Objective = PreferenceLoss(plan.preference) if plan.preference else CaptionLoss()
        self.record = plan.checkpoint_record(self.captioner.config.base_hash)
        resumed = load_checkpoint(self.storage, self.captioner, self.record, ray.train.torch.get_device())
        self.engine, *_ = deepspeed.initialize(
            model=self.captioner,
            model_parameters=parameter_groups(self.captioner, plan.optimizer),
            config=deepspeed_config(plan.optimizer, plan.workers),
        )
        if resumed:
            restore(self.engine, resumed)
        self.first_step = resumed.step if resumed else 0
        self.device = self.engine.device
        self.autocast = plan.workers.bf16 and not plan.workers.use_gpu  # on GPUs DeepSpeed handles bf16
        if self.autocast and plan.workers.zero_stage < 3:
            # After deepspeed.initialize, which converts all weights to float32.
            self.captioner.cast_frozen_base(torch.bfloat16)
        self.batches.enable_feature_cache()
        self.evaluator = InLoopEvaluator(
            plan.directory,
            plan.eval,
            cue=plan.cue,
            in_lockstep=plan.workers.zero_stage == 3,
            rank=self.rank,
            num_workers=self.num_workers,
        )
        peak = peak_flops(self.device, bf16=plan.workers.bf16, given_tflops=plan.eval.peak_tflops)
        self.throughput = Throughput(self.captioner, peak=peak, device=self.device)

    def train(self) -> None:
        """Run the steps from the latest checkpoint to the end, then write the model directory."""
        plan, num_steps = self.plan, self.batches.num_steps
        metrics = MetricsWriter(plan.directory, first_step=self.first_step) if self.rank == 0 else None
        with self.batches.begin(self.first_step) as steps:
            for step in steps:
                started, done = time.monotonic(), step.number + 1
                rate = learning_rate(step.number, num_steps, plan.optimizer)
                result = self._step(step, rate)
                seconds = time.monotonic() - started
                panel = self.throughput.figures(seconds, regions=result.counts["regions"], **result.work)
                scores = self._evaluate(done)
                if metrics:
                    metrics.write(
                        step=done,
                        num_steps=num_steps,
                        loss=result.loss,
                        learning_rate=rate,
                        grad_norm=result.grad_norm,
                        **{f"num_{name}": count for name, count in result.counts.items()},
                        **result.figures,
                        **panel,
                        idle_share=round(1 - step.load_balance, 4),
                        **({"heldout": scores} if scores else {}),
                    )
                if done % plan.checkpoints.every_steps == 0 or done == num_steps:
                    score = scores.get(plan.eval.score)
                    report_checkpoint(self.storage, self.engine, self.record, step=done, score=score)
        if metrics:
            metrics.close()
        self._save_model()

    def _evaluate(self, done: int) -> dict[str, float]:
        """Return in-loop scores and the seconds they took after `done` steps; empty if no evaluation is due."""
        if not self.evaluator.due(done, self.batches.num_steps):
            return {}
        started = time.monotonic()
        with self._autocast():
            result = self.evaluator.evaluate(self.captioner, done)
        self.storage.push_files(result.files)
        return {**result.scores, "seconds": round(time.monotonic() - started, 2)}

    def _step(self, step: Step, rate: float) -> _StepResult:
        """Run one optimizer step. Counts come first: every microbatch's loss is divided by the step's total tokens."""
        # Dropout: the same draws for an interrupted and an uninterrupted run.
        torch.manual_seed(int(np.random.SeedSequence([self.plan.seed, step.number, self.rank]).generate_state(1)[0]))
        waited = self.batches.waited_seconds
        with self._autocast():
            microbatches = list(self.batches.microbatches(step))
        waited = (self.batches.waited_seconds - waited) / len(microbatches)
        counts = self._sum_by_name(
            [
                {
                    **each.weighted({**self.objective.counts(each.batch), **self.throughput.work_of(each.batch)}),
                    "data_wait": waited / self.num_workers,
                }
                for each in microbatches
            ]
        )
        work = {name: counts.pop(name) for name in (*WORK, "data_wait")}
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        shares: list[dict[str, float]] = []
        for left, one in zip(reversed(range(len(microbatches))), microbatches, strict=True):
            # DeepSpeed must know before the forward whether the optimizer steps after this microbatch.
            self.engine.set_gradient_accumulation_boundary(left == 0)
            with self._autocast():
                share, metrics = self.objective.loss(self.engine, one.batch.to(self.device), counts)
            values = {"loss": float(share.detach()), **{name: float(value) for name, value in metrics.items()}}
            shares.append(one.weighted(values))
            self.engine.backward(loss_for_backward(share * one.weight, self.num_workers), scale_wrt_gas=False)
            self.engine.step()
        figures = self._sum_by_name(shares)
        loss = figures.pop("loss")
        grad_norm = float(self.engine.get_global_grad_norm() or 0.0)
        refuse_non_finite(step.number + 1, loss=loss, grad_norm=grad_norm)
        totals = {name: round(count) for name, count in counts.items()}
        return _StepResult(
            loss=loss,
            grad_norm=grad_norm,
            counts=totals,
            figures=figures,
            work=work,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)

    def _sum_by_name(self, by_microbatch: list[dict[str, float]]) -> dict[str, float]:
        """Sum values by name over all microbatches and workers; the names must agree."""
        values = [list(each.values()) for each in by_microbatch]
        total = torch.tensor(values, dtype=torch.float64, device=self.device).sum(dim=0)
        torch.distributed.all_reduce(total)
        return dict(zip(by_microbatch[0], total.tolist(), strict=True))

    def _save_model(self) -> None:
        """Write `<run>/model` atomically."""
        target = Path(self.plan.directory) / MODEL_DIRECTORY
        weights = gather(self.engine, "weights")
        # Only ZeRO 3 partitions weights; in other stages this gathers nothing.
        with deepspeed.zero.GatheredParameters(self._parameters_to_save()):
            if self.rank == 0:
                with atomic_folder(target) as partial:
                    self.captioner.save_pretrained(partial)
                    replace_weights(partial, weights)
                self.storage.push_model()
        torch.distributed.barrier()

    def _parameters_to_save(self) -> list[Tensor]:
        return [
            parameter
            for name, parameter in self.captioner.named_parameters()
            if parameter.requires_grad or name.startswith("mask_encoder.")
        ]
