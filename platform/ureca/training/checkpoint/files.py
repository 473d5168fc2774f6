"""Checkpoints of a training: for going on, not for using (that is the model directory).

    <storage>/checkpoints/checkpoint_<step>_<id>/weights.safetensors      what trains: 32 bit, by parameter name
                                                 exp_avg.safetensors      AdamW's first moments, by the same names
                                                 exp_avg_sq.safetensors   its second moments
                                                 record.json              written last: step, score, seed, the base's
                                                                          hash, plan, workers, each file's size, SHA-256

Nothing in them tells how many workers there were or what they shared out: `states.py` gathers and hands out
again. The frozen base is not in them but loaded from its own source; hence its hash is, and another base is refused.
A checkpoint says itself whether it is whole. Ray Train's own list of them decides which are thrown away, and nothing
else: it can be lost without losing a checkpoint.
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
"""Where in a run's folder the trained model directory appears when training is done."""

CheckpointPart = Literal["weights", "exp_avg", "exp_avg_sq"]
PARTS: tuple[CheckpointPart, ...] = ("weights", "exp_avg", "exp_avg_sq")

_RECORD = "record.json"
_RAY_LIST = "checkpoint_manager_snapshot.json"
_NAME = re.compile(r"checkpoint_\d{8}_\w+")


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole, as far as it was looked at."""

    path: str
    record: dict[str, Any]
    parts: dict[CheckpointPart, dict[str, torch.Tensor]] = field(default_factory=dict, repr=False)
    """On the CPU; those that were asked for."""

    @property
    def step(self) -> int:
        """Steps that are done."""
        return int(self.record["step"])

    @property
    def score(self) -> float | None:
        """Of evaluation at its very step; None where there was none."""
        score = self.record.get("score")
        return None if score is None else float(score)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class _DamagedError(Exception):
    """Its text says what is wrong with a checkpoint."""


class _UnfinishedError(_DamagedError):
    """A save that was cut off before its record."""


class CheckpointWriter:
    """Writes one checkpoint part by part; only `finish` makes it one. For one process."""

    def __init__(self, folder: str, step: int) -> None:
        self.name = f"checkpoint_{step:08d}_{uuid.uuid4().hex[:8]}"
        self._path = f"{folder}/{self.name}"
        self._files: dict[str, dict[str, Any]] = {}

    def add(self, part: CheckpointPart, tensors: dict[str, torch.Tensor]) -> None:
        """Write a part.

        Raises:
            StorageError: the disk is full, or S3 refuses or does not answer; nothing of the checkpoint is left.
        """
        name = f"{part}.safetensors"
        data = save(tensors, metadata={"format": "pt"})
        with self._giving_up():
            write_bytes(f"{self._path}/{name}", data)
        self._files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def finish(self, record: dict[str, Any]) -> None:
        """Write the record. Raises as `add`."""
        with self._giving_up():
            write_json(f"{self._path}/{_RECORD}", {**record, "files": self._files})

    @contextlib.contextmanager
    def _giving_up(self) -> Any:
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # what made the write fail is what must be told
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
            f"{folder}: none of its checkpoints is whole: {'; '.join(damaged)}. Copy one back from elsewhere, or "
            "remove them to start from the beginning."
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
    """The whole ones in a run's folder of checkpoints, oldest first, with their weights; one is read at a time.

    Raises:
        StorageError: S3 refuses or does not answer.
    """
    for name in _names(folder):
        with contextlib.suppress(_DamagedError):
            yield _open(f"{folder}/{name}", ("weights",))


def completed_steps(folder: str, settings: dict[str, Any]) -> int:
    """Return the number of steps of the newest complete checkpoint; 0 without one. Starts no process.

    Raises:
        CheckpointError, StorageError: as `newest_checkpoint`.
    """
    checkpoint, _ = newest_checkpoint(folder, settings, with_content=False)
    return checkpoint.step if checkpoint else 0


def repair_checkpoint_index(folder: str) -> bool:
    """Remove Ray Train's index of checkpoints if it is unreadable or names missing ones; return whether it was removed.

    Ray Train writes its index in place, so a full disk leaves an empty file, with which Ray Train refuses to start.
    """
    if file_bytes(f"{folder}/{_RAY_LIST}") is None:
        return False
    try:
        _listed(folder)
    except Exception:  # Ray Train raises many kinds
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
    """Remove checkpoints that Ray Train's index lacks and that are older than its newest: interrupted saves."""
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
    """Oldest first: names begin with the step."""
    return [name for name in list_folders(folder) if _NAME.fullmatch(name)]


def _open(path: str, content: Sequence[CheckpointPart] = ()) -> Checkpoint:
    """With the parts named in `content`; the others' sizes alone are compared."""
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
                raise _DamagedError(f"{name} is not what was written (SHA-256)")
            try:
                parts[part] = load(data)
            except SafetensorError as error:
                raise _DamagedError(f"{name} is no safetensors file ({error})") from None
    return Checkpoint(path, record, parts)
