"""Keep a run's folder in step with S3, so that its machines need no shared file system.

<storage>/table_index/         pushed by the driver before workers start, pulled by each machine
          init_3f9c41d2a0b7/   likewise: the model directory to start from, named by its content
          eval/images.json     likewise
               step_000050/    pushed by each worker after its share of an evaluation, pulled by the driver
          metrics.jsonl       pushed by worker 0 with each checkpoint, pulled by worker 0 when it resumes elsewhere
          worker_log.jsonl    pushed by worker 0 after it logged an event, pulled where metrics are
          model/              pushed by worker 0 at the end, pulled by the driver, which adds its record
          model_best/, training.png    pushed by the driver at the end
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ureca.model.captioner import CONFIG_FILE
from ureca.model.exporting.export import TRAINING_FILE
from ureca.storage.files import copy_folder, exists, file_bytes, read_bytes, write_bytes
from ureca.training.checkpoint.best import BEST_DIRECTORY
from ureca.training.checkpoint.files import CHECKPOINTS_DIRECTORY, MODEL_DIRECTORY
from ureca.training.data.table_index import INDEX_DIRECTORY, INDEX_RECORD
from ureca.training.monitor.inloop_eval import EVAL_DIRECTORY, IMAGES_FILE
from ureca.training.monitor.metrics import FILE, last_line
from ureca.training.monitor.tail import WORKER_LOG_FILE

_EVAL_IMAGES = f"{EVAL_DIRECTORY}/{IMAGES_FILE}"


class RunStorage:
    """A run's folder on this machine, and its copy in S3 when the checkpoints are stored there.

    Without S3 (`storage` empty or a local path) every push and pull does nothing: all machines see `directory`.
    """

    def __init__(self, directory: str | Path, storage: str = "") -> None:
        """Take the run's local folder and `checkpoints.storage`, which may be empty, local or `s3://...`."""
        self.directory = Path(directory)
        self._remote = storage if "://" in storage else ""
        self.checkpoints = f"{storage or directory}/{CHECKPOINTS_DIRECTORY}"
        """Folder of the run's checkpoints, as `ureca.storage.files` takes it."""

    def push_inputs(self, *, init_copy: str = "", evaluates: bool = False) -> None:
        """Push what workers start with: table index, initial model, the list of evaluation images."""
        if not self._remote:
            return
        if init_copy and not exists(f"{self._remote}/{init_copy}/{CONFIG_FILE}"):
            self._push_folder(init_copy)
        copy_folder(self.directory / INDEX_DIRECTORY, f"{self._remote}/{INDEX_DIRECTORY}", last=INDEX_RECORD)
        if evaluates:
            self._push(_EVAL_IMAGES)

    def pull_inputs(self, *, init_copy: str = "", evaluates: bool = False) -> None:
        """Pull the inputs that this machine lacks or has in another version.

        Several workers of one machine may call this at once: each file is replaced atomically.
        """
        if not self._remote:
            return
        if init_copy and not (self.directory / init_copy / CONFIG_FILE).is_file():
            self._pull_folder(init_copy)
        if self._differs(f"{INDEX_DIRECTORY}/{INDEX_RECORD}"):
            copy_folder(f"{self._remote}/{INDEX_DIRECTORY}", self.directory / INDEX_DIRECTORY, last=INDEX_RECORD)
        if evaluates and self._differs(_EVAL_IMAGES):
            self._pull(_EVAL_IMAGES)

    def push_files(self, files: Sequence[Path]) -> None:
        """Push files of the run's folder."""
        if self._remote:
            for file in files:
                self._push(str(file.relative_to(self.directory)))

    def push_metrics(self) -> None:
        """Push metrics.jsonl."""
        if self._remote:
            self._push(FILE)

    def pull_metrics(self, step: int) -> None:
        """Pull metrics.jsonl when this machine has not written the lines up to `step`."""
        if self._remote and self._last_step() < step and exists(f"{self._remote}/{FILE}"):
            self._pull(FILE)

    def push_log(self) -> None:
        """Push the worker log, if there is one."""
        if self._remote and (self.directory / WORKER_LOG_FILE).is_file():
            self._push(WORKER_LOG_FILE)

    def pull_log(self) -> None:
        """Pull the worker log when S3 has more of it than this machine."""
        if self._remote:
            local = self.directory / WORKER_LOG_FILE
            local_bytes = local.stat().st_size if local.is_file() else 0
            if (file_bytes(f"{self._remote}/{WORKER_LOG_FILE}") or 0) > local_bytes:
                self._pull(WORKER_LOG_FILE)

    def push_model(self) -> None:
        """Push the trained model directory."""
        if self._remote:
            self._push_folder(MODEL_DIRECTORY)

    def pull_results(self, num_steps: int, *, evaluates: bool) -> None:
        """Pull evaluations, metrics and model of a finished run that other machines have written."""
        if not self._remote:
            return
        if evaluates:
            copy_folder(f"{self._remote}/{EVAL_DIRECTORY}", self.directory / EVAL_DIRECTORY)
        if self._last_step() < num_steps:
            shutil.rmtree(self.directory / MODEL_DIRECTORY, ignore_errors=True)
            self._pull_folder(MODEL_DIRECTORY)
            self.pull_metrics(num_steps)

    def push_results(self, *files: str) -> None:
        """Push what the driver adds to a finished run: the model's record, the best model, and `files`."""
        if self._remote:
            for file in (f"{MODEL_DIRECTORY}/{TRAINING_FILE}", *files):
                self._push(file)
            if (self.directory / BEST_DIRECTORY).is_dir():
                self._push_folder(BEST_DIRECTORY)

    def _push(self, file: str) -> None:
        write_bytes(f"{self._remote}/{file}", (self.directory / file).read_bytes())

    def _pull(self, file: str) -> None:
        write_bytes(self.directory / file, read_bytes(f"{self._remote}/{file}"))

    def _push_folder(self, name: str) -> None:
        copy_folder(self.directory / name, f"{self._remote}/{name}", last=CONFIG_FILE)

    def _pull_folder(self, name: str) -> None:
        copy_folder(f"{self._remote}/{name}", self.directory / name, last=CONFIG_FILE)

    def _differs(self, file: str) -> bool:
        """Return whether this machine lacks the file or has another version of it."""
        local = self.directory / file
        return not local.is_file() or local.read_bytes() != read_bytes(f"{self._remote}/{file}")

    def _last_step(self) -> int:
        line = last_line(self.directory / FILE)
        return int(line["step"]) if line else 0
