"""Where the figures and pictures of a training go besides its own files.

    tensorboard   event files in <run>/tensorboard            tensorboard --logdir RUN/tensorboard
    mlflow        MLFLOW_TRACKING_URI, else <run>/mlruns      if installed
    wandb         WANDB_MODE, WANDB_API_KEY, ...              if installed

Trackers live in the driver and follow the run's files (`follow.py`): keys stay with the driver, and neither a slow
network nor a tracker that fails holds up a worker.
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
    """Steps are counted from 1."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, pixels: np.ndarray, text: str) -> None:
        """`pixels`: (H, W, 3) uint8 RGB; `text`: the same in words, Markdown."""

    def close(self) -> None: ...


def refuse_missing_trackers(names: tuple[str, ...]) -> None:
    """Raises ConfigError where one that is asked for is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"eval.trackers={','.join(names)}: {name} is not installed. "
                f"pip install {_PACKAGES[name]}, or leave it out of --eval.trackers."
            )


def open_trackers(
    names: tuple[str, ...], directory: Path, settings: Mapping[str, Any], *, done: int
) -> dict[str, Tracker]:
    """The trackers by their names, going on after `done` steps. `settings`: the run's, flat, for those that show them.

    Raises:
        ConfigError: one can't start: it has no address, or no key.
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
        except Exception as error:  # of any kind: it comes from someone else's client
            raise ConfigError(
                f"eval.trackers={','.join(names)}: {name} can't start ({type(error).__name__}: {error}). "
                "Check its settings in the environment, or leave it out of --eval.trackers."
            ) from error
    return trackers


def delete_tensorboard_files(directory: Path) -> None:
    """Remove the event files of a start that came to nothing."""
    shutil.rmtree(directory / _EVENTS, ignore_errors=True)


class _TensorBoard:
    """Event files, written at once: tensorboardX's SummaryWriter hands them to a thread of its own, which Ctrl-C in the
    middle of a write can leave waiting for ever."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], done: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder = directory / _EVENTS
        folder.mkdir(parents=True, exist_ok=True)
        # Named by the second alone, a start soon after another would write over its file.
        self._events = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex[:8]}")
        if done:  # what an interrupted start wrote of the steps that are done again is hidden
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
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.17 would rather have a database
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
