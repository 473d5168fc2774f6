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
from ureca.training.plan import Plan, refuse_other_plan

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


def checkpoints_folder(plan: Plan) -> str:
    """Where a plan's checkpoints are, as `ureca.storage.files` takes it."""
    return f"{plan.checkpoints.storage or plan.directory}/{CHECKPOINTS_DIRECTORY}"


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


def newest_checkpoint(plan: Plan, *, with_content: bool) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a run that is whole (None: there never was one), and what is wrong with newer ones.

    Args:
        with_content: read it and compare with the SHA-256 of its record; else sizes alone are compared.

    Raises:
        CheckpointError: it was made under another plan; or there are checkpoints and none is whole.
        StorageError: S3 refuses or does not answer.
    """
    folder = checkpoints_folder(plan)
    damaged: list[str] = []
    finished = False
    for name in reversed(_names(folder)):
        try:
            checkpoint = _open(f"{folder}/{name}", PARTS if with_content else ())
        except _DamagedError as error:
            finished |= not isinstance(error, _UnfinishedError)
            damaged.append(f"{name}: {error}")
            continue
        refuse_other_plan(plan.directory, checkpoint.record["plan"], plan.identity())
        return checkpoint, damaged
    if finished:
        raise CheckpointError(
            f"{folder}: none of its checkpoints is whole: {'; '.join(damaged)}. Copy one back from elsewhere, or "
            "remove them to start from the beginning."
        )
    return None, damaged


def best_checkpoint(plan: Plan) -> Checkpoint | None:
    """The whole checkpoint of the highest `eval.score`, the newest of equals, with its weights; None: none has one.

    Raises:
        StorageError: S3 refuses or does not answer.
    """
    folder = checkpoints_folder(plan)
    scored = []
    for name in _names(folder):
        with contextlib.suppress(_DamagedError):
            checkpoint = _open(f"{folder}/{name}")
            if checkpoint.score is not None and checkpoint.record["scored_by"] == plan.eval.score:
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


def completed_steps(plan: Plan) -> int:
    """Steps that the newest whole checkpoint of a run has behind it; 0 without one. Starts no process.

    Raises:
        CheckpointError, StorageError: as `newest_checkpoint`.
    """
    checkpoint, _ = newest_checkpoint(plan, with_content=False)
    return checkpoint.step if checkpoint else 0


def repair_checkpoint_index(plan: Plan) -> bool:
    """Remove Ray Train's list of checkpoints if it can't be read or names ones that are gone; says whether.

    Ray Train writes it in place, so that a full disk leaves an empty file, with which it then refuses to start.
    """
    folder = checkpoints_folder(plan)
    if file_bytes(f"{folder}/{_RAY_LIST}") is None:
        return False
    try:
        _listed(folder)
    except Exception:  # Ray Train raises many kinds
        where, inner = filesystem(f"{folder}/{_RAY_LIST}")
        where.delete_file(inner)
        return True
    return False


def delete_all_checkpoints(plan: Plan) -> None:
    """Remove what an earlier start left that came to no checkpoint."""
    folder = checkpoints_folder(plan)
    for name in _names(folder):
        remove_folder(f"{folder}/{name}")
    if file_bytes(f"{folder}/{_RAY_LIST}") is not None:
        where, inner = filesystem(f"{folder}/{_RAY_LIST}")
        where.delete_file(inner)


def delete_unindexed_checkpoints(plan: Plan) -> None:
    """Remove what Ray Train does not know and is older than what it does: cut-off saves, those of a lost list."""
    folder = checkpoints_folder(plan)
    if file_bytes(f"{folder}/{_RAY_LIST}") is None:
        return
    listed = _listed(folder)
    for name in _names(folder):
        if name not in listed and name < max(listed, default=""):
            remove_folder(f"{folder}/{name}")


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
