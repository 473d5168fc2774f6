"""Run folder, progress line and exit codes of a job."""

import io
import json
from dataclasses import dataclass

import pytest

from ureca.errors import ConfigError, InputError
from ureca.runs import Progress, Run, capture_context, run_job


@dataclass(frozen=True)
class Config:
    steps: int = 3


def metrics(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


def test_run_writes_config_context_metrics_and_summary(tmp_path, capsys):
    run = Run.start("train", Config(), directory=tmp_path / "r")
    run.log(step=1, loss=0.5)
    assert not (run.directory / "summary.json").exists()
    run.finish({"accuracy": 0.98765, "images": {"labeled": 12_345, "quarantined": 0}})
    assert (run.directory / "config.yaml").read_text() == "steps: 3\n"
    assert json.loads((run.directory / "env.json").read_text())["versions"]["pyarrow"]
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary["job"] == "train"
    assert summary["images"] == {"labeled": 12_345, "quarantined": 0}
    table = capsys.readouterr().out
    assert "accuracy            0.9877\n" in table
    assert "images.labeled      12,345\n" in table
    assert table.endswith("written to " + str(run.directory / "summary.json") + "\n")


def test_run_default_folder_is_named_after_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run.start("export", Config()).directory.resolve() == tmp_path / "runs" / "export"


def test_run_second_start_resumes_in_same_folder(tmp_path, capsys):
    first = Run.start("train", Config(steps=3), directory=tmp_path)
    first.log(step=1)
    first.finish({})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"seconds": 40.0, "step": 2}\n{"seconds": 41')  # killed while writing its last line
    second = Run.start("train", Config(steps=4), directory=tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert second.seconds >= 40
    second.log(step=3)
    assert "changed: steps" in capsys.readouterr().err
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if line.endswith("}")] == [1, 2, 3]


def test_run_folder_in_bucket_or_on_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="^s3://b/r"):
        Run.start("train", Config(), directory="s3://b/r")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="folder"):
        Run.start("train", Config(), directory=tmp_path / "file")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_line_has_rate_fields_and_time_left():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("label", 10_000, unit="images", stream=stream, clock=clock)
    clock.now = 60  # warm-up: does not count towards the rate
    progress.update(200, quarantined=0)
    clock.now = 65
    progress.update(201, quarantined=1)  # within every_seconds: no line
    clock.now = 160
    progress.update(1200, quarantined=3, slots_busy="94%")
    clock.now = 161
    progress.update(10_000, quarantined=3)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "label  200/10,000 images  quarantined 0",
        "label  1,200/10,000 images  10/s  quarantined 3  slots busy 94%  left 15m",
        "label  10,000/10,000 images  97/s  quarantined 3",
    ]


def test_progress_counted_in_steps_omits_rate():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("train", 2000, counted="step", stream=stream, clock=clock, every_seconds=0)
    progress.update(1)
    clock.now = 478
    progress.update(240, "loss 1.214", "212 regions/s", MFU="41%")
    assert stream.getvalue().splitlines()[-1] == "train  step 240/2,000  loss 1.214  212 regions/s  MFU 41%  left 59m"


@pytest.mark.parametrize(("seconds", "text"), [(9, "9s"), (300, "5m"), (7200, "2h00m"), (100_000, "27h47m")])
def test_progress_time_left_is_readable(seconds, text):
    clock, stream = Clock(), io.StringIO()
    progress = Progress("x", 1 + 1 + seconds, unit="steps", stream=stream, clock=clock, every_seconds=0)
    progress.update(1)
    clock.now = 1
    progress.update(2)
    assert stream.getvalue().splitlines()[-1].endswith(f"left {text}")


def test_capture_context_has_command_machine_and_versions():
    context = capture_context()
    assert context["cores"] >= 1
    assert context["memory_bytes"] > 0
    assert context["python"].startswith("3.11")
    assert {"command", "date", "commit", "dirty", "cpu", "gpus"} <= set(context)
    json.dumps(context)


def raised_in_a_ray_task(error: Exception) -> Exception:
    """Wrap an error like `ray.get`: same class, but its text is a remote traceback."""
    from ray.exceptions import RayTaskError

    return RayTaskError("task", "Traceback\n  remote frames\n", error).as_instanceof_cause()


@pytest.mark.parametrize("wrap", [lambda error: error, raised_in_a_ray_task])
def test_run_job_user_error_exits_2_with_one_line(wrap, capsys):
    def main() -> None:
        raise wrap(InputError("a.jpg: no such file."))

    with pytest.raises(SystemExit) as ended:
        run_job(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a.jpg: no such file.\n"


def test_run_job_ctrl_c_exits_130_with_remedy(capsys):
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_job(main)
    assert ended.value.code == 130
    [line] = capsys.readouterr().err.splitlines()
    assert "resume" in line


def test_run_job_bug_keeps_its_traceback():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_job(main)


def test_run_job_success_exits_0():
    with pytest.raises(SystemExit) as ended:
        run_job(lambda: None)
    assert ended.value.code == 0
