"""Checkpoints for resuming a training. For use, a run writes a model directory instead.

    <storage>/checkpoints/checkpoint_<step>_<id>/weights.safetensors      trained weights, 32 bit, by parameter name
                                                 exp_avg.safetensors      AdamW's first moments, same names
                                                 exp_avg_sq.safetensors   AdamW's second moments
                                                 record.json              written last: step, score, seed, base hash,
                                                                          plan, workers, each file's size and SHA-256

A checkpoint is independent of the number of workers and of ZeRO partitioning (`optimizer_state.py` gathers and
restores). The frozen base is not stored; its hash is, and another base is refused. A checkpoint proves its own
completeness. Ray Train's index only decides which checkpoints are deleted, so losing the index loses no checkpoint.
"""

import contextlib
import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ureca.cluster import before_importing_ray
from ureca.errors import CheckpointError, InputError
from ureca.storage.files import (
    file_bytes,
    filesystem,
    list_folders,
    read_bytes,
    read_json,
    remove_folder,
    write_bytes,
    write_json,
)

CHECKPOINTS_DIRECTORY = "checkpoints"
MODEL_DIRECTORY = "model"
"""Folder in the run's folder that receives the trained model directory."""

CheckpointPart = Literal["weights", "exp_avg", "exp_avg_sq"]
PARTS: tuple[CheckpointPart, ...] = ("weights", "exp_avg", "exp_avg_sq")

_RECORD = "record.json"
_RAY_LIST = "checkpoint_manager_snapshot.json"
_NAME = re.compile(r"checkpoint_\d{8}_\w+")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that passed the checks made so far."""

    path: str
    record: dict[str, Any]
    parts: dict[CheckpointPart, dict[str, torch.Tensor]] = field(default_factory=dict, repr=False)
    """Tensors of the requested parts, on the CPU."""

    @property
    def step(self) -> int:
        """Completed steps."""
        return int(self.record["step"])

    @property
    def score(self) -> float | None:
        """Score of the evaluation at this step; None without one."""
        score = self.record.get("score")
        return None if score is None else float(score)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class _DamagedError(Exception):
    """A damaged checkpoint; the message names the fault."""


class _UnfinishedError(_DamagedError):
    """A save that was interrupted before its record was written."""


class CheckpointWriter:
    """Writes one checkpoint part by part from one process; `finish` makes it valid."""

    def __init__(self, folder: str, step: int) -> None:
        self.name = f"checkpoint_{step:08d}_{uuid.uuid4().hex[:8]}"
        self._path = f"{folder}/{self.name}"
        self._files: dict[str, dict[str, Any]] = {}

    def add(self, part: CheckpointPart, tensors: dict[str, torch.Tensor]) -> None:
        """Write a part.

        Raises:
            StorageError: the disk is full, or S3 refuses or does not answer; the partial checkpoint is removed.
        """
        name = f"{part}.safetensors"
        data = save(tensors, metadata={"format": "pt"})
        with self._giving_up():
            write_bytes(f"{self._path}/{name}", data)
        self._files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def finish(self, record: dict[str, Any]) -> None:
        """Write the record. Raises like `add`."""
        with self._giving_up():
            write_json(f"{self._path}/{_RECORD}", {**record, "files": self._files})

    @contextlib.contextmanager
    def _giving_up(self) -> Any:
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # the write error matters more than the cleanup
                remove_folder(self._path)
            raise


def newest_checkpoint(
    folder: str, settings: dict[str, Any], *, with_content: bool
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint (None: the run never had one) and the faults of newer, damaged ones.

    Args:
        folder: the run's folder of checkpoints.
        settings: the run's identity, as its checkpoints record it (`Plan.identity`).
        with_content: read the checkpoint and verify its SHA-256; otherwise only file sizes are compared.

    Raises:
        CheckpointError: the checkpoint was made with other settings, or checkpoints exist and all are damaged.
        StorageError: S3 refuses or does not answer.
    """
    damaged: list[str] = []
    finished = False
    for name in reversed(_names(folder)):
        try:
            checkpoint = _open(f"{folder}/{name}", PARTS if with_content else ())
        except _DamagedError as error:
            finished |= not isinstance(error, _UnfinishedError)
            damaged.append(f"{name}: {error}")
            continue
        refuse_other_settings(checkpoint.path, checkpoint.record["plan"], settings)
        return checkpoint, damaged
    if finished:
        raise CheckpointError(
            f"{folder}: all checkpoints are damaged: {'; '.join(damaged)}. Restore one from a copy, or remove them to "
            "start from the beginning."
        )
    return None, damaged


def best_checkpoint(folder: str, score: str) -> Checkpoint | None:
    """Return the complete checkpoint with the highest `score` (the newest of equals), weights loaded.

    None if no checkpoint was scored by that metric.

    Raises:
        StorageError: S3 refuses or does not answer.
    """
    scored = []
    for name in _names(folder):
        with contextlib.suppress(_DamagedError):
            checkpoint = _open(f"{folder}/{name}")
            if checkpoint.score is not None and checkpoint.record["scored_by"] == score:
                scored.append(checkpoint)
    for checkpoint in sorted(scored, key=lambda each: (each.score, each.step), reverse=True):
        with contextlib.suppress(_DamagedError):
            return _open(checkpoint.path, ("weights",))
    return None


def complete_checkpoints(folder: str) -> Iterator[Checkpoint]:
    """Yield the complete checkpoints of a folder, oldest first, weights loaded, one at a time.

    Raises:
        StorageError: S3 refuses or does not answer.
    """
    for name in _names(folder):
        with contextlib.suppress(_DamagedError):
            yield _open(f"{folder}/{name}", ("weights",))


def completed_steps(folder: str, settings: dict[str, Any]) -> int:
    """Return the step of the newest complete checkpoint; 0 without one. Starts no process.

    Raises:
        CheckpointError, StorageError: like `newest_checkpoint`.
    """
    checkpoint, _ = newest_checkpoint(folder, settings, with_content=False)
    return checkpoint.step if checkpoint else 0


def repair_checkpoint_index(folder: str) -> bool:
    """Remove Ray Train's checkpoint index if it is unreadable or lists missing checkpoints; return whether it was
    removed.

    Ray Train writes the index in place, so a full disk leaves an empty file, and Ray Train then refuses to start.
    """
    if file_bytes(f"{folder}/{_RAY_LIST}") is None:
        return False
    try:
        _listed(folder)
    except Exception:  # Ray Train raises many types
        where, inner = filesystem(f"{folder}/{_RAY_LIST}")
        where.delete_file(inner)
        return True
    return False


def delete_all_checkpoints(folder: str) -> None:
    """Remove the remains of an earlier start that completed no checkpoint."""
    for name in _names(folder):
        remove_folder(f"{folder}/{name}")
    if file_bytes(f"{folder}/{_RAY_LIST}") is not None:
        where, inner = filesystem(f"{folder}/{_RAY_LIST}")
        where.delete_file(inner)


def delete_unindexed_checkpoints(folder: str) -> None:
    """Remove interrupted saves: checkpoints that are older than Ray Train's newest and missing from its index."""
    if file_bytes(f"{folder}/{_RAY_LIST}") is None:
        return
    listed = _listed(folder)
    for name in _names(folder):
        if name not in listed and name < max(listed, default=""):
            remove_folder(f"{folder}/{name}")


def refuse_other_settings(checkpoint: str, recorded: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise CheckpointError, naming both sides, if a checkpoint was made with other settings."""
    missing = object()
    differing = [
        f"{key}={recorded.get(key)!r} in the checkpoint, {current.get(key)!r} here"
        for key in {**recorded, **current}
        if recorded.get(key, missing) != current.get(key, missing)
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint}: this checkpoint belongs to another training: {'; '.join(differing)}. "
            "Resume with the settings it was made with, or set another --run_directory."
        )


def _listed(folder: str) -> set[str]:
    before_importing_ray()
    from ray.train import Result

    where, inner = filesystem(folder)
    kept = Result.from_path(inner, storage_filesystem=where).best_checkpoints or []
    return {checkpoint.path.rsplit("/", 1)[-1] for checkpoint, _ in kept}


def _names(folder: str) -> list[str]:
    """List checkpoint names, oldest first: names begin with the step."""
    return [name for name in list_folders(folder) if _NAME.fullmatch(name)]


def _open(path: str, content: Sequence[CheckpointPart] = ()) -> Checkpoint:
    """Open a checkpoint and load the parts named in `content`; other parts are checked by size only."""
    if file_bytes(f"{path}/{_RECORD}") is None:
        raise _UnfinishedError(f"no {_RECORD}")
    try:
        record = read_json(f"{path}/{_RECORD}")
        files: dict[CheckpointPart, dict[str, Any]] = {part: record["files"][f"{part}.safetensors"] for part in PARTS}
        if not (int(record["step"]) and dict(record["plan"]) and record["base_hash"] and dict(record["workers"])):
            raise ValueError(record)
    except (InputError, KeyError, TypeError, ValueError):
        raise _DamagedError(f"{_RECORD} can't be read") from None
    parts: dict[CheckpointPart, dict[str, torch.Tensor]] = {}
    for part, file in files.items():
        name = f"{part}.safetensors"
        size = file_bytes(f"{path}/{name}")
        if size is None:
            raise _DamagedError(f"no {name}")
        if size != file["bytes"]:
            raise _DamagedError(f"{name} has {size:,} of {file['bytes']:,} bytes")
        if part in content:
            data = read_bytes(f"{path}/{name}")
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                raise _DamagedError(f"{name} has a different SHA-256 than recorded")
            try:
                parts[part] = load(data)
            except SafetensorError as error:
                raise _DamagedError(f"{name} is not a safetensors file ({error})") from None
    return Checkpoint(path, record, parts)
