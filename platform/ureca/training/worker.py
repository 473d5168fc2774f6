"""What each training worker runs: build the model, go on where the latest checkpoint stands, step, save.

    step k:  its packed batches, one a pass, made ahead (batches.py) -> tokens of the whole step
             (all-reduce) -> forward, backward for each pass -> clip, AdamW -> loss of the whole step

Ray Train starts one process per worker and joins them in a process group (gloo on CPUs, nccl on GPUs);
DeepSpeed shares out optimizer states, gradients or weights among them.
"""

import os
import shutil
import time
import uuid
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
from ureca.training.checkpoint.files import MODEL_DIRECTORY
from ureca.training.checkpoint.optimizer_state import load_checkpoint, report_checkpoint, restore
from ureca.training.checkpoint.s3_sync import RunStorage
from ureca.training.data.loader import BatchLoader, Step
from ureca.training.deepspeed import (
    TrainingError,
    deepspeed_config,
    learning_rate,
    loss_for_backward,
    refuse_non_finite,
)
from ureca.training.monitor.inloop_eval import InLoopEvaluator
from ureca.training.monitor.metrics import MetricsWriter
from ureca.training.monitor.throughput import WORK, Throughput, peak_flops
from ureca.training.objectives import CaptionLoss, Objective, PreferenceLoss
from ureca.training.plan import Plan


@dataclass(frozen=True)
class _StepResult:
    loss: float
    """Of the whole step, as the objective has it."""
    grad_norm: float
    """Before clipping."""
    counts: dict[str, int]
    """What the objective counted: `tokens`, `regions`, ..."""
    figures: dict[str, float]
    """The objective's further metrics."""
    work: dict[str, float]
    """What the batches of all workers held: `flops` needed, `sequence_tokens`, `places` for them; and `data_wait`, the
    seconds that a worker waited for its batches, mean over the workers."""


def train_worker(settings: dict[str, Any]) -> None:
    """Train one plan (`config_to_dict(plan)`) from its latest checkpoint to its end. Ray Train calls this.

    Raises:
        CheckpointError: the latest checkpoint was made from another base or another plan.
        TrainingError: loss or gradient became non-finite, or a disk is full; names the step.
        InputError: an image or a caption can't be read.
    """
    plan = config_from_dict(Plan, settings, where="training plan")
    if not plan.workers.use_gpu:
        # DeepSpeed would compile a shared-memory all-reduce at run time: a minute, or an error without a
        # compiler. Its table of operators that may be compiled is left empty instead; gloo does the work.
        deepspeed.ops.__compatible_ops__ = {}
    worker = _Worker(plan)
    try:
        worker.train()
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        raise TrainingError(
            f"{plan.directory}: can't be written, the disk is full ({error}). Free some space; the same command then "
            "goes on from the newest checkpoint."
        ) from error
    finally:
        worker.engine.destroy()


class _Worker:
    """One process of a training: its model in a DeepSpeed engine, its share of every step."""

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
            model_parameters=[p for p in self.captioner.parameters() if p.requires_grad],
            config=deepspeed_config(plan.optimizer, plan.workers),
        )
        if resumed:
            restore(self.engine, resumed)
        self.first_step = resumed.step if resumed else 0
        self.device = self.engine.device
        self.autocast = plan.workers.bf16 and not plan.workers.use_gpu  # on a GPU DeepSpeed sees to it
        if self.autocast and plan.workers.zero_stage < 3:
            # Only now: DeepSpeed has just put all weights into float32.
            self.captioner.hold_frozen_base(torch.bfloat16)
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
        """Step from the latest checkpoint to the end, then write the model directory."""
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
        """Scores of held-out images after so many steps, and the seconds that it took; nothing where none is due."""
        if not self.evaluator.due(done, self.batches.num_steps):
            return {}
        started = time.monotonic()
        with self._autocast():
            result = self.evaluator.evaluate(self.captioner, done)
        self.storage.push_files(result.files)
        return {**result.scores, "seconds": round(time.monotonic() - started, 2)}

    def _step(self, step: Step, rate: float) -> _StepResult:
        """One optimizer step. Counts come first: every pass's loss is divided by the whole step's tokens."""
        # Dropout: the same draws whether or not the run was interrupted before this step.
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
            # DeepSpeed must know before the forward pass whether the weights change after this pass.
            self.engine.set_gradient_accumulation_boundary(left == 0)
            with self._autocast():
                share, told = self.objective.loss(self.engine, one.batch.to(self.device), counts)
            values = {"loss": float(share.detach()), **{name: float(value) for name, value in told.items()}}
            shares.append(one.weighted(values))
            self.engine.backward(loss_for_backward(share * one.weight, self.num_workers), scale_wrt_gas=False)
            self.engine.step()
        figures = self._sum_by_name(shares)
        loss = figures.pop("loss")
        grad_norm = float(self.engine.get_global_grad_norm() or 0.0)
        refuse_non_finite(step.number + 1, loss=loss, grad_norm=grad_norm)
        whole = {name: round(count) for name, count in counts.items()}
        return _StepResult(
            loss=loss,
            grad_norm=grad_norm,
            counts=whole,
            figures=figures,
            work=work,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)

    def _sum_by_name(self, of_passes: list[dict[str, float]]) -> dict[str, float]:
        """Sums over all passes and workers; all have the same names."""
        values = [list(each.values()) for each in of_passes]
        total = torch.tensor(values, dtype=torch.float64, device=self.device).sum(dim=0)
        torch.distributed.all_reduce(total)
        return dict(zip(of_passes[0], total.tolist(), strict=True))

    def _save_model(self) -> None:
        """Write `<run>/model` in one piece: it is either absent or whole."""
        target = Path(self.plan.directory) / MODEL_DIRECTORY
        # ZeRO 3 spreads weights over the workers; elsewhere there is nothing to gather.
        with deepspeed.zero.GatheredParameters(self._parameters_to_save()):
            if self.rank == 0:
                partial = target.with_name(f".{MODEL_DIRECTORY}.{uuid.uuid4().hex}.partial")
                try:
                    self.captioner.save_pretrained(partial)
                    shutil.rmtree(target, ignore_errors=True)
                    os.replace(partial, target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
                self.storage.push_model()
        torch.distributed.barrier()

    def _parameters_to_save(self) -> list[Tensor]:
        return [
            parameter
            for name, parameter in self.captioner.named_parameters()
            if parameter.requires_grad or name.startswith("mask_encoder.")
        ]
