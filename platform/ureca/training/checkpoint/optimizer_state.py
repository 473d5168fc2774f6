"""What trains and its optimizer, apart from how DeepSpeed has shared them out: gathered, saved, taken up again.

    worker 0..W-1, ZeRO 1, 2 or 3  --gather-->  {parameter name: whole tensor, 32 bit}  --restore-->  worker 0..V-1

So any number of workers and any stage can go on where others stopped, and with the same number of workers and stage
bit for bit (tests/training/checkpoint/test_optimizer_state.py). DeepSpeed's own checkpoints hold shards, which no other number of workers
can load.

Three parts for each parameter that trains: the weight, and AdamW's exp_avg and exp_avg_sq. `deepspeed.utils.safe_get_*`
gathers them in every stage, offloaded or not. Of the ways back, `safe_set_full_*` fails in stage 3 where a parameter
does not divide by the number of workers, so there each worker sets its own piece; and both expect an optimizer that has
stepped, so its states are made here first.
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
    """One part of all that trains, by parameter name: on the CPU of worker 0, empty elsewhere. All must call this."""
    keep = torch.distributed.get_rank() == 0
    whole = {}
    for name, parameter in _trained(engine.module):
        if part == "weights":
            tensor = safe_get_full_fp32_param(parameter)
        else:
            tensor = safe_get_full_optimizer_state(parameter, part)
        if keep:
            whole[name] = tensor.detach().to("cpu", torch.float32, copy=True)
    return whole


class ResumeState:
    """A checkpoint in the memory of worker 0, whose tensors go to all workers one by one."""

    def __init__(self, step: int, parts: dict[CheckpointPart, dict[str, Tensor]], device: torch.device) -> None:
        self.step = step
        """Steps that are done."""
        self._parts, self._device = parts, device

    def tensors(self, part: CheckpointPart, module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter of `module` that trains, with its tensor. All workers must iterate to the end."""
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

    Logs what was found and kept to the worker log. All workers must call this. None without a checkpoint.

    Args:
        record: of this run (`Plan.checkpoint_record`), compared with the checkpoint's.

    Raises:
        CheckpointError: it was made from another base, under another plan, or holds other parameters; or there are
            checkpoints and none is whole. Worker 0 raises it, the others wait for their end.
    """
    found = [0, 0]
    checkpoint = None
    if torch.distributed.get_rank() == 0:
        storage.directory.mkdir(parents=True, exist_ok=True)
        checkpoint, damaged = newest_checkpoint(storage.checkpoints, record["plan"], with_content=True)
        storage.pull_log()  # this machine may not have run the last start
        where = f"going on from the one before, step {checkpoint.step}" if checkpoint else "starting at the beginning"
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
    """Give a fresh engine, whose module `load_checkpoint` has filled, the 32-bit weights and the optimizer of a checkpoint."""
    shared = engine.optimizer
    adam = shared.optimizer
    for flat in _flat_partitions(shared):
        # As AdamW makes them at its first step. Its fused form counts steps on the device.
        fused = adam.defaults.get("fused")
        adam.state[flat] = {
            "step": torch.tensor(float(resumed.step), device=flat.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    if hasattr(shared, "_lazy_init_hp_params_optimizer_state"):  # ZeRO 1 and 2: parameters find their states
        shared._lazy_init_hp_params_optimizer_state()
    for part in PARTS:
        for parameter, tensor in resumed.tensors(part, engine.module):
            _set(parameter, tensor, part)


def report_checkpoint(
    storage: RunStorage, engine: Any, record: dict[str, Any], *, step: int, score: float | None = None
) -> None:
    """Save what trains after `step` steps and report it to Ray Train. All workers must call this.

    Args:
        record: of this run (`Plan.checkpoint_record`), stored with the checkpoint.
        score: of the evaluation after this step, higher is better; None without an evaluation.

    What was saved before is as it was in either case; worker 0 raises it.

    Raises:
        TrainingError: the disk is full.
        StorageError: S3 refuses or does not answer, which may pass: failures.py lets it be tried again.
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
            f"step {step}: its checkpoint can't be saved. {error} The same command then goes on from the checkpoint "
            "before."
        ) from error
    report_saved(writer, step=step, score=score)


def report_saved(writer: CheckpointWriter | None, *, step: int, score: float | None) -> None:
    """Enter what worker 0's `writer` has written into Ray Train's list. All workers must call this."""
    import ray.train
    from ray.train import CheckpointUploadMode

    saved = None
    if writer:
        storage = ray.train.get_context().get_storage()
        saved = ray.train.Checkpoint(f"{storage.experiment_fs_path}/{writer.name}", storage.storage_filesystem)
    # Without a score: behind all that have one. Ray Train keeps its list in JSON, which has no infinity.
    metrics = {"step": step, "score": -sys.float_info.max if score is None else float(score)}
    ray.train.report(metrics, checkpoint=saved, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def resume_message(checkpoint: Checkpoint, record: dict[str, Any]) -> str:
    """One line: where a run goes on, and what it kept of its checkpoint."""
    now = record["workers"]
    before = {**now, **checkpoint.record["workers"]}  # older checkpoints don't tell all of it
    where = f"going on after step {checkpoint.step}"
    if before == now:
        return f"{where} with the weights and optimizer of {checkpoint.name}"
    workers = "worker" if before["num_workers"] == 1 else "workers"
    text = (
        f"{where}: weights and optimizer of {before['num_workers']} {workers} ({before['sharing']}) taken up by "
        f"{now['num_workers']} ({now['sharing']}): all kept"
    )
    # Each step's draws are seeded by its number and the worker, and go by that worker's passes and device.
    others = [name for name in ("num_workers", "tokens_per_device", "use_gpu") if before[name] != now[name]]
    if record["plan"].get("lora.dropout") and others:
        text += f"; dropout draws otherwise than it would have (another {', '.join(others)})"
    return text


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _flat_partitions(shared: Any) -> list[Tensor]:
    """This worker's pieces of all that trains, 32 bit: what the optimizer works on. ZeRO 3, 1 and 2, 1 in bf16."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(shared, name):
            return list(getattr(shared, name))
    raise AssertionError(type(shared))


def _set(parameter: nn.Parameter, tensor: Tensor, part: CheckpointPart) -> None:
    if not hasattr(parameter, "ds_id"):
        if part == "weights":
            safe_set_full_fp32_param(parameter, tensor)
        else:
            safe_set_full_optimizer_state(parameter, tensor, part)
        return
    piece: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed's
    size = piece.numel()  # of each worker's piece; the last one is padded
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
            f"{checkpoint.path}: was made from a base with weights {recorded[:12]}, the base {record['plan']['base']} "
            f"now has {base_hash[:12]}. Put the former base back, or give another --run_directory."
        )
    mine = {name: tuple(parameter.shape) for name, parameter in _trained(module)}
    saved = {name: tuple(tensor.shape) for name, tensor in checkpoint.parts["weights"].items()}
    differing = [name for name in {**saved, **mine} if saved.get(name) != mine.get(name)]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{checkpoint.path}: {len(differing)} of the weights that train are not those of this model, "
            f"{name} for one: {saved.get(name, 'absent')} there, {mine.get(name, 'absent')} here. Go on with the "
            "version of this project that wrote it, or give another --run_directory."
        )


def _from_first_worker(values: list[int], device: torch.device) -> list[int]:
    shared = torch.tensor(values, dtype=torch.int64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return [int(value) for value in shared]
