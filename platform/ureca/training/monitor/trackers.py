"""Experiment trackers for metrics and pictures of a training.

    tensorboard   event files in <run>/tensorboard            tensorboard --logdir RUN/tensorboard
    mlflow        MLFLOW_TRACKING_URI, else <run>/mlruns      if installed
    wandb         WANDB_MODE, WANDB_API_KEY, ...              if installed

Trackers run in the driver and tail the run's files (`tail.py`): keys stay with the driver, and neither a slow network
nor a failing tracker delays a worker.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ureca.errors import ConfigError

_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
_PROJECT = "ureca"
_EVENTS = "tensorboard"


class Tracker(Protocol):
    """An experiment tracker. Steps are counted from 1."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, pixels: np.ndarray, text: str) -> None:
        """Log a picture: `pixels` is (H, W, 3) uint8 RGB, `text` its content in Markdown."""

    def close(self) -> None: ...


def refuse_missing_trackers(names: tuple[str, ...]) -> None:
    """Raise ConfigError if a requested tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"eval.trackers={','.join(names)}: {name} is not installed. pip install {_PACKAGES[name]}, or remove "
                "it from --eval.trackers."
            )


def open_trackers(
    names: tuple[str, ...], directory: Path, settings: Mapping[str, Any], *, done: int
) -> dict[str, Tracker]:
    """Open trackers by name, continuing after `done` steps. `settings` are the run's, flat.

    Raises:
        ConfigError: a tracker can't start, e.g. without an address or key.
    """
    kinds: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
        "tensorboard": _TensorBoard,
        "mlflow": _MLflow,
        "wandb": _WeightsAndBiases,
    }
    trackers: dict[str, Tracker] = {}
    for name in names:
        try:
            trackers[name] = kinds[name](directory, settings, done)
        except Exception as error:  # any type: raised by a third-party client
            raise ConfigError(
                f"eval.trackers={','.join(names)}: {name} can't start ({type(error).__name__}: {error}). Check its "
                "settings in the environment, or remove it from --eval.trackers."
            ) from error
    return trackers


def delete_tensorboard_files(directory: Path) -> None:
    """Remove the event files of a start without a checkpoint."""
    shutil.rmtree(directory / _EVENTS, ignore_errors=True)


class _TensorBoard:
    """TensorBoard event files, written synchronously: tensorboardX's SummaryWriter uses a thread, which Ctrl-C during a
    write can leave waiting forever."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], done: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder = directory / _EVENTS
        folder.mkdir(parents=True, exist_ok=True)
        # The default name has a resolution of one second, so a quick restart would overwrite its file.
        self._events = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex[:8]}")
        if done:  # hide an interrupted start's records of steps that are repeated
            self._write(done + 1, session_log=SessionLog(status=SessionLog.START))
        else:
            rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
            self._text(0, "settings", f"| setting | value |\n|---|---|\n{rows}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._events.flush()

    def picture(self, step: int, name: str, pixels: np.ndarray, text: str) -> None:
        from tensorboardX.summary import image

        self._write(step, summary=image(name, pixels, dataformats="HWC"))
        self._text(step, name, text)

    def close(self) -> None:
        self._events.close()

    def _text(self, step: int, name: str, text: str) -> None:
        from tensorboardX import summary

        self._write(step, summary=summary.text(name, text))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **content))


class _MLflow:
    def __init__(self, directory: Path, settings: Mapping[str, Any], done: int) -> None:
        import os

        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.17 asks for a database otherwise
            mlflow.set_tracking_uri((directory / "mlruns").resolve().as_uri())
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            mlflow.set_experiment(_PROJECT)
        kept = directory / "mlflow_run_id"
        before = kept.read_text().strip() if done and kept.is_file() else None
        self._run = mlflow.start_run(run_id=before, run_name=None if before else directory.name)
        self._client, self._id = mlflow.MlflowClient(), self._run.info.run_id
        kept.write_text(f"{self._id}\n")
        if not before:
            mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray, text: str) -> None:
        self._client.log_image(self._id, pixels, key=name, step=step)
        self._client.log_text(self._id, text, f"{name}/step_{step:06d}.md")

    def close(self) -> None:
        import mlflow

        mlflow.end_run()


class _WeightsAndBiases:
    def __init__(self, directory: Path, settings: Mapping[str, Any], done: int) -> None:
        import os

        import wandb

        kept = directory / "wandb_run_id"
        before = kept.read_text().strip() if done and kept.is_file() else None
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=directory.name,
            dir=str(directory),
            config=dict(settings),
            id=before,
            resume="allow",
        )
        kept.write_text(f"{self._run.id}\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray, text: str) -> None:
        import wandb

        self._run.log({name: wandb.Image(pixels, caption=text)}, step=step)

    def close(self) -> None:
        self._run.finish()
