"""Run folder of a job, its progress line, and its exit codes.

    runs/<job>/config.yaml     the complete configuration, defaults included
               env.json        command, commit, machine, versions
               metrics.jsonl   one line per `Run.log`
               summary.json    written last and atomically: present only if the job finished

A job started again with the same folder resumes in it.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import yaml

from ureca.config import config_to_dict, flatten, save_config
from ureca.errors import ConfigError, UrecaError
from ureca.hardware import capture_context
from ureca.storage.files import to_json, write_json


class Run:
    """Folder of one job's run, created by `Run.start`."""

    def __init__(self, job: str, directory: Path, seconds_before: float) -> None:
        self.job = job
        self.directory = directory
        self._seconds_before = seconds_before
        self._started = time.monotonic()

    @classmethod
    def start(cls, job: str, config: Any, *, directory: str | Path | None = None) -> "Run":
        """Open the run's folder (`runs/<job>` by default) and write config.yaml and env.json into it.

        The folder of an earlier start is resumed: its metrics are kept, and keys whose value has changed since are
        listed on stderr.

        Raises:
            ConfigError: the folder is not on a local disk, or can't be created.
        """
        text = os.fspath(directory) if directory is not None else os.path.join("runs", job)
        if "://" in text or text.startswith("s3:/"):
            raise ConfigError(f"{text}: a run's folder must be on the local disk of the driver. Give a local folder.")
        folder = Path(text)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder}: can't create a run folder there ({error.strerror}).") from error
        (folder / "summary.json").unlink(missing_ok=True)  # this start has not finished yet
        _report_changes(folder / "config.yaml", config_to_dict(config))
        save_config(config, folder / "config.yaml")
        write_json(folder / "env.json", capture_context())
        return cls(job, folder, _last_seconds(folder / "metrics.jsonl"))

    @property
    def seconds(self) -> float:
        """Seconds that the job has run in this folder, earlier starts included."""
        return self._seconds_before + time.monotonic() - self._started

    def log(self, **metrics: Any) -> None:
        """Append one line to metrics.jsonl: `seconds`, then the metrics."""
        with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(to_json({"seconds": round(self.seconds, 3), **metrics}) + "\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json atomically and print it as a table."""
        summary = {"job": self.job, "seconds": round(self.seconds, 1), **summary}
        path = self.directory / "summary.json"
        write_json(path, summary)
        rows = [(key, _cell(value)) for key, value in flatten(summary).items()]
        width = max(len(key) for key, _ in rows)
        print("\n".join(f"{key:<{width}}  {value}" for key, value in rows))
        print(f"written to {path}", flush=True)


def _last_seconds(metrics: Path) -> float:
    """Return the `seconds` of the last line that an earlier start logged."""
    if not metrics.is_file():
        return 0.0
    last, text = 0.0, metrics.read_text(encoding="utf-8")
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            last = float(json.loads(line)["seconds"])
    if text and not text.endswith("\n"):  # the job was killed while writing: start a new line
        with open(metrics, "a", encoding="utf-8") as file:
            file.write("\n")
    return last


def _report_changes(path: Path, config: dict[str, Any]) -> None:
    if not path.is_file():
        return
    try:
        before = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, AttributeError, TypeError):
        return
    now = flatten(config)
    missing = object()
    changed = [key for key in {**before, **now} if before.get(key, missing) != now.get(key, missing)]
    if changed:
        print(
            f"{path.parent}: resuming with a different configuration; changed: {', '.join(changed)}",
            file=sys.stderr,
        )


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value) or "-"
    return str(value)


class Progress:
    """Progress line on stderr with rate and remaining time, at most every `every_seconds`.

        label  1,204/10,000 images  8.4/s  quarantined 3  left 17m
        train  step 240/2,000  loss 1.214  212 regions/s  left 38m        (counted="step", and notes)

    The rate counts from the first update, so that warming up (engine start, compilation) and the work of earlier starts
    do not distort it.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        unit: str = "",
        counted: str = "",
        every_seconds: float = 10,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a progress line.

        `unit` follows the numbers and has a rate; `counted` precedes them, without a rate.
        """
        self._label, self._total, self._unit, self._counted = label, total, unit, counted
        self._every, self._clock = every_seconds, clock
        self._stream = stream
        self._first: tuple[float, int] | None = None
        self._printed_at: float | None = None
        self._printed = self._latest = ""

    def update(self, done: int, *notes: str, **fields: Any) -> None:
        """Report that `done` of the total are done.

        The line continues with `notes` and with `fields` as `name value`, underscores shown as spaces.
        """
        now = self._clock()
        if self._first is None:
            self._first = (now, done)
        self._latest = self._line(now, done, notes, fields)
        if self._printed_at is None or now - self._printed_at >= self._every:
            self._print(now)

    def close(self) -> None:
        """Print the final state unless it was just printed."""
        if self._latest != self._printed:
            self._print(self._clock())

    def _print(self, now: float) -> None:
        print(self._latest, file=self._stream or sys.stderr, flush=True)
        self._printed, self._printed_at = self._latest, now

    def _line(self, now: float, done: int, notes: tuple[str, ...], fields: dict[str, Any]) -> str:
        assert self._first is not None
        first_at, first_done = self._first
        parts = [self._label, f"{self._counted} {done:,}/{self._total:,} {self._unit}".strip()]
        rate = (done - first_done) / (now - first_at) if now > first_at else 0.0
        if rate > 0 and not self._counted:
            parts.append(f"{rate:.3g}/s" if rate < 100 else f"{rate:,.0f}/s")
        parts += notes
        parts += [f"{name.replace('_', ' ')} {_cell(value)}" for name, value in fields.items()]
        if rate > 0 and done < self._total:
            parts.append(f"left {_duration((self._total - done) / rate)}")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{round(seconds)}s"
    if seconds < 3600:
        return f"{round(seconds / 60)}m"
    return f"{int(seconds // 3600)}h{round(seconds % 3600 / 60):02d}m"


def run_job(main: Callable[[], None]) -> NoReturn:
    """Run a job's `main` and end the process.

    Exit code 0; 2 with one line on stderr for an error that the user can fix; 130 after Ctrl-C. Any other exception is
    a bug in this project and keeps its traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # An exception from a Ray task arrives wrapped, with a remote traceback as its text; the original is its
        # `cause`.
        for candidate in (getattr(error, "cause", None), error):
            if isinstance(candidate, UrecaError):
                print(f"error: {candidate}", file=sys.stderr)
                sys.exit(2)
        raise
    sys.exit(0)
