"""Gather, save and restore weights and optimizer state independently of ZeRO partitioning.

    worker 0..W-1, ZeRO 1, 2 or 3  --gather-->  {parameter name: full tensor, 32 bit}  --restore-->  worker 0..V-1

Any number of workers and any ZeRO stage can resume a checkpoint; the same number and stage resume it bit for bit
(tests/training/checkpoint/test_optimizer_state.py). DeepSpeed's own checkpoints hold shards, which only the same number
of workers can load.

Each trained parameter has three parts: the weight, and AdamW's exp_avg and exp_avg_sq. `deepspeed.utils.safe_get_*`
gathers them in every stage, with or without offloading. Restoring is harder. `safe_set_full_*` fails in stage 3 for
parameters whose size is not divisible by the number of workers, so there each worker sets its own partition. And the
setters expect an optimizer that has stepped, so its states are created here first.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from ureca.errors import CheckpointError, StorageError
from ureca.storage.files import is_full_disk
from ureca.training.checkpoint.files import (
    PARTS,
    Checkpoint,
    CheckpointPart,
    CheckpointWriter,
    newest_checkpoint,
)
from ureca.training.checkpoint.s3_sync import RunStorage
from ureca.training.deepspeed import TrainingError
from ureca.training.monitor.tail import log_event


def gather(engine: Any, part: CheckpointPart) -> dict[str, Tensor]:
    """Gather one part of all trained parameters, by name. All workers must call this.

    Worker 0 receives the tensors on the CPU; the result is empty on other workers.
    """
    keep = torch.distributed.get_rank() == 0
    whole = {}
    if part != "weights":
        _link_states(engine.optimizer)
    for name, parameter in _trained(engine.module):
        if part == "weights":
            tensor = safe_get_full_fp32_param(parameter)
        else:
            tensor = safe_get_full_optimizer_state(parameter, part)
        if keep:
            whole[name] = tensor.detach().to("cpu", torch.float32, copy=True)
    return whole


class ResumeState:
    """A checkpoint in worker 0's memory, broadcast to all workers tensor by tensor."""

    def __init__(self, step: int, parts: dict[CheckpointPart, dict[str, Tensor]], device: torch.device) -> None:
        self.step = step
        """Completed steps."""
        self._parts, self._device = parts, device

    def tensors(self, part: CheckpointPart, module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield each trained parameter of `module` with its tensor. All workers must iterate to the end."""
        for name, parameter in _trained(module):
            shape = getattr(parameter, "ds_shape", parameter.shape)  # in ZeRO 3 the parameter itself is empty
            tensor = torch.empty(shape, dtype=torch.float32, device=self._device)
            if torch.distributed.get_rank() == 0:
                tensor.copy_(self._parts[part][name])
            torch.distributed.broadcast(tensor, src=0)
            yield parameter, tensor


def load_checkpoint(
    storage: RunStorage, module: nn.Module, record: dict[str, Any], device: torch.device
) -> ResumeState | None:
    """Load the weights of the newest complete checkpoint into `module`, before DeepSpeed partitions them.

    Writes what was found and kept to the worker log. All workers must call this. Returns None without a checkpoint.

    Args:
        record: record of this run (`Plan.checkpoint_record`), compared with the checkpoint's.

    Raises:
        CheckpointError: the checkpoint was made from another base, with other settings, or holds other parameters; or
            all checkpoints are damaged. Worker 0 raises it; the other workers wait until Ray Train ends them.
    """
    found = [0, 0]
    checkpoint = None
    if torch.distributed.get_rank() == 0:
        storage.directory.mkdir(parents=True, exist_ok=True)
        checkpoint, damaged = newest_checkpoint(storage.checkpoints, record["plan"], with_content=True)
        storage.pull_log()  # the last start may have run on another machine
        where = (
            f"resuming from the previous one, step {checkpoint.step}" if checkpoint else "starting from the beginning"
        )
        if damaged:
            log_event(storage.directory, f"checkpoint damaged: {'; '.join(damaged)}; {where}")
        if checkpoint:
            _refuse_other_model(checkpoint, module, record)
            log_event(storage.directory, resume_message(checkpoint, record))
            storage.pull_metrics(checkpoint.step)
            found = [1, checkpoint.step]
        storage.push_log()
    exists_, step = _from_first_worker(found, device)
    if not exists_:
        return None
    resumed = ResumeState(step, checkpoint.parts if checkpoint else {}, device)
    with torch.no_grad():
        for parameter, tensor in resumed.tensors("weights", module):
            parameter.copy_(tensor)
    return resumed


def restore(engine: Any, resumed: ResumeState) -> None:
    """Restore 32-bit weights and optimizer state in a new engine, after `load_checkpoint` filled its module."""
    shared = engine.optimizer
    adam = shared.optimizer
    for flat in _flat_partitions(shared):
        # The states that AdamW creates at its first step. Fused AdamW keeps its step count on the device.
        fused = adam.defaults.get("fused")
        adam.state[flat] = {
            "step": torch.tensor(float(resumed.step), device=flat.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    _link_states(shared)
    for part in PARTS:
        for parameter, tensor in resumed.tensors(part, engine.module):
            _set(parameter, tensor, part)


def report_checkpoint(
    storage: RunStorage, engine: Any, record: dict[str, Any], *, step: int, score: float | None = None
) -> None:
    """Save trained weights and optimizer state after `step` steps and report them to Ray Train. All workers must call
    this.

    Earlier checkpoints are unaffected by a failure, which worker 0 raises.

    Args:
        record: record of this run (`Plan.checkpoint_record`), stored with the checkpoint.
        score: score of the evaluation after this step, higher is better; None without an evaluation.

    Raises:
        TrainingError: the disk is full.
        StorageError: S3 refuses or does not answer. This may pass, so `failures.py` allows a retry.
    """
    first = torch.distributed.get_rank() == 0
    writer = CheckpointWriter(storage.checkpoints, step) if first else None
    try:
        for part in PARTS:
            tensors = gather(engine, part)
            if writer:
                writer.add(part, tensors)
        if writer:
            writer.finish({"step": step, "score": score, **record})
            storage.push_metrics()
    except StorageError as error:
        if not is_full_disk(error):
            raise
        raise TrainingError(
            f"step {step}: the checkpoint can't be saved. {error} The same command then resumes from the previous "
            "checkpoint."
        ) from error
    report_saved(writer, step=step, score=score)


def report_saved(writer: CheckpointWriter | None, *, step: int, score: float | None) -> None:
    """Register the checkpoint written by worker 0's `writer` with Ray Train. All workers must call this."""
    import ray.train
    from ray.train import CheckpointUploadMode

    saved = None
    if writer:
        storage = ray.train.get_context().get_storage()
        saved = ray.train.Checkpoint(f"{storage.experiment_fs_path}/{writer.name}", storage.storage_filesystem)
    # Without a score, rank behind all that have one. Ray Train keeps its index in JSON, which has no infinity.
    metrics = {"step": step, "score": -sys.float_info.max if score is None else float(score)}
    ray.train.report(metrics, checkpoint=saved, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def resume_message(checkpoint: Checkpoint, record: dict[str, Any]) -> str:
    """Describe in one line where a run resumes and what is kept."""
    now = record["workers"]
    before = {**now, **checkpoint.record["workers"]}  # older checkpoints lack some keys
    where = f"resuming after step {checkpoint.step}"
    if before == now:
        return f"{where} with the weights and optimizer of {checkpoint.name}"
    workers = "worker" if before["num_workers"] == 1 else "workers"
    text = (
        f"{where}: weights and optimizer of {before['num_workers']} {workers} ({before['sharing']}) restored on "
        f"{now['num_workers']} ({now['sharing']}), nothing lost"
    )
    # Draws are seeded by step and worker, and depend on the worker's microbatches and device.
    others = [name for name in ("num_workers", "tokens_per_device", "use_gpu") if before[name] != now[name]]
    if record["plan"].get("lora.dropout") and others:
        text += f"; LoRA dropout differs from an uninterrupted run (changed: {', '.join(others)})"
    return text


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _flat_partitions(shared: Any) -> list[Tensor]:
    """Return this worker's flat 32-bit partitions of the trained weights (ZeRO 3; 1 and 2; 1 in bf16)."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(shared, name):
            return list(getattr(shared, name))
    raise AssertionError(type(shared))


def _link_states(shared: Any) -> None:
    """Link parameters to their optimizer states (ZeRO 1 and 2).

    DeepSpeed 0.19.8 links all groups after the first step of the first one, when the others have no states yet.
    """
    if hasattr(shared, "_lazy_init_hp_params_optimizer_state"):
        shared._hp_optimizer_states_linked = False
        shared._lazy_init_hp_params_optimizer_state()


def _set(parameter: nn.Parameter, tensor: Tensor, part: CheckpointPart) -> None:
    if not hasattr(parameter, "ds_id"):
        if part == "weights":
            safe_set_full_fp32_param(parameter, tensor)
        else:
            safe_set_full_optimizer_state(parameter, tensor, part)
        return
    piece: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed's
    size = piece.numel()  # of each worker's partition; the last one is padded
    padded = nn.functional.pad(tensor.flatten(), (0, size * torch.distributed.get_world_size() - tensor.numel()))
    mine = padded.narrow(0, size * torch.distributed.get_rank(), size)
    if part == "weights":
        safe_set_local_fp32_param(parameter, mine)
    else:
        safe_set_local_optimizer_state(parameter, mine, part)


def _refuse_other_model(checkpoint: Checkpoint, module: nn.Module, record: dict[str, Any]) -> None:
    recorded, base_hash = checkpoint.record["base_hash"], record["base_hash"]
    if recorded != base_hash:
        raise CheckpointError(
            f"{checkpoint.path}: was made from a base with weights {recorded[:12]}, but the base "
            f"{record['plan']['base']} now has {base_hash[:12]}. Restore the former base, or set another "
            "--run_directory."
        )
    mine = {name: tuple(parameter.shape) for name, parameter in _trained(module)}
    saved = {name: tuple(tensor.shape) for name, tensor in checkpoint.parts["weights"].items()}
    differing = [name for name in {**saved, **mine} if saved.get(name) != mine.get(name)]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{checkpoint.path}: {len(differing)} trained weights do not match this model, e.g. {name}: "
            f"{saved.get(name, 'absent')} in the checkpoint, {mine.get(name, 'absent')} here. Resume with the version "
            "of this project that wrote it, or set another --run_directory."
        )


def _from_first_worker(values: list[int], device: torch.device) -> list[int]:
    shared = torch.tensor(values, dtype=torch.int64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return [int(value) for value in shared]
