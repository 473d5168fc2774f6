"""Records that the driver passes to trackers: figures once and in order, pictures with their text."""

import io
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from ureca.errors import ConfigError
from ureca.training.monitor.inloop_eval import CAPTIONS_FILE, eval_directory
from ureca.training.monitor.metrics import FILE, MetricsWriter
from ureca.training.monitor.tail import MetricsTailer, progress_fields, scalars_of
from ureca.training.monitor.trackers import Tracker, open_trackers, refuse_missing_trackers

SCORES = {"rouge_l": 0.5, "uniqueness": 0.25}


def read_events(folder: Path) -> list[Event]:
    """All events of a TensorBoard folder. A record: length (8 bytes), its checksum (4), data, its checksum (4)."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return events


def figures(events: list[Event], tag: str) -> list[tuple[int, float]]:
    return [
        (event.step, value.simple_value)
        for event in events
        for value in event.summary.value
        if value.tag == tag and not value.HasField("tensor") and not value.HasField("image")
    ]


class Recorder:
    """A tracker that remembers; `failing` raises from a step on, as a network that goes away."""

    def __init__(self, failing: int = 10**9) -> None:
        self.failing, self.steps, self.pictures, self.closed = failing, [], [], 0

    def scalars(self, step: int, values: Any) -> None:
        if step >= self.failing:
            raise ConnectionError("no route to host")
        self.steps.append((step, values["train/loss"]))

    def picture(self, step: int, name: str, pixels: np.ndarray, text: str) -> None:
        self.pictures.append((step, name, pixels.shape, text))

    def close(self) -> None:
        self.closed += 1


def line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "num_steps": 9,
        "loss": 10.0 - step,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "num_tokens": 100,
        "num_regions": 20,
        "regions_per_second": 212.4,
        "mfu": 0.412,
        "padding_share": 0.03,
        "data_wait_share": 0.01,
        **more,
    }


def write_look(run: Path, step: int) -> None:
    folder = eval_directory(run, step)
    folder.mkdir(parents=True)
    Image.fromarray(np.full((12, 20, 3), 200, np.uint8)).save(folder / "image_00.jpg")
    record = {"image": 0, "image_id": "a", "region_id": "1", "caption": "a red box", "reference": "the red box"}
    (folder / CAPTIONS_FILE).write_text(json.dumps({**record, "fits_alone": True}) + "\n")


def test_each_step_is_handed_on_once_and_in_order(tmp_path: Path) -> None:
    tracker = Recorder()
    tailer = MetricsTailer(tmp_path, {"recorder": tracker}, done=0)
    assert tailer.poll() is None
    writer = MetricsWriter(tmp_path, first_step=0)
    writer.write(**line(1))
    writer.write(**line(2))
    newest = tailer.poll()
    assert newest is not None
    assert newest["step"] == 2
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 3, "lo')  # half a line: a worker that is killed while it writes
    assert tailer.poll() is None
    # Another worker resumes after step 1 and rewrites the file.
    writer = MetricsWriter(tmp_path, first_step=1)
    writer.write(**line(2))
    writer.write(**line(3))
    tailer.poll()
    tailer.close()
    assert tracker.steps == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert tracker.closed == 1


def test_pictures_come_with_their_captions(tmp_path: Path) -> None:
    tracker = Recorder()
    write_look(tmp_path, 2)
    writer = MetricsWriter(tmp_path, first_step=0)
    writer.write(**line(1))
    writer.write(**line(2, heldout=SCORES))
    MetricsTailer(tmp_path, {"recorder": tracker}, done=0).poll()
    assert tracker.pictures == [(2, "heldout/image_00", (12, 20, 3), "1. a red box (label: the red box)")]


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, broken = Recorder(), Recorder(failing=2)
    tailer = MetricsTailer(tmp_path, {"fine": fine, "broken": broken}, done=0)
    writer = MetricsWriter(tmp_path, first_step=0)
    for step in (1, 2, 3):
        writer.write(**line(step))
    tailer.poll()
    assert [step for step, _ in fine.steps] == [1, 2, 3]
    assert [step for step, _ in broken.steps] == [1]
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert re.search("broken.*ConnectionError: no route to host", errors)


def test_tensorboard_s_files_hold_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    write_look(tmp_path, 2)
    writer = MetricsWriter(tmp_path, first_step=0)
    for step in (1, 2, 3):
        writer.write(**line(step, **({"heldout": SCORES} if step == 2 else {})))
    trackers = open_trackers(("tensorboard",), tmp_path, {"seed": 7}, done=0)
    tailer = MetricsTailer(tmp_path, trackers, done=0)
    tailer.poll()
    tailer.close()
    events = read_events(tmp_path / "tensorboard")
    assert figures(events, "train/loss") == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert figures(events, "heldout/rouge_l") == [(2, 0.5)]
    assert figures(events, "heldout/uniqueness") == [(2, 0.25)]
    assert dict(figures(events, "throughput/mfu")) == pytest.approx(dict.fromkeys((1, 2, 3), 0.412))
    [picture] = [v.image for e in events for v in e.summary.value if v.HasField("image")]
    assert (picture.height, picture.width) == (12, 20)
    pixels = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert np.abs(pixels.astype(int) - 200).max() <= 2
    texts = [v.tensor.string_val[0].decode() for e in events for v in e.summary.value if v.HasField("tensor")]
    assert any("| seed | 7 |" in text for text in texts)
    assert any("a red box (label: the red box)" in text for text in texts)


def test_steps_that_are_done_again_hide_what_tensorboard_was_told_before(tmp_path: Path) -> None:
    for done in (0, 2):
        [tracker] = open_trackers(("tensorboard",), tmp_path, {}, done=done).values()
        for step in range(done + 1, 5):
            tracker.scalars(step, {"train/loss": 10.0 * done + step})
        tracker.close()
    starts = [event for event in read_events(tmp_path / "tensorboard") if event.HasField("session_log")]
    # TensorBoard drops what stands before a start for steps from its own on.
    assert [event.step for event in starts] == [3]


def test_figures_are_grouped_and_words_left_out() -> None:
    found = scalars_of({**line(4, heldout=SCORES), "seconds": 12.5, "log_event": "x"})
    assert {name.split("/")[0] for name in found} == {"train", "throughput", "heldout"}
    assert found["train/loss"] == 6.0
    assert found["heldout/rouge_l"] == 0.5
    assert "throughput/note" not in found


def test_a_person_reads_the_panel_in_one_line() -> None:
    assert "  ".join(progress_fields(line(4))) == ("loss 6  grad 0.5  212 regions/s  MFU 41%  padding 3%  data wait 1%")
    bare = {key: value for key, value in line(4).items() if not key.endswith("share") and key != "mfu"}
    assert "  ".join(progress_fields(bare)) == "loss 6  grad 0.5  212 regions/s"
    rates = [progress_fields(line(4, regions_per_second=rate))[2] for rate in (3.456, 1234.5)]
    assert rates == ["3.46 regions/s", "1,234 regions/s"]


def test_a_tracker_that_is_not_installed_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    refuse_missing_trackers(("tensorboard",))
    with pytest.raises(ConfigError, match="installed"):
        refuse_missing_trackers(("tensorboard", "mlflow"))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_other_trackers_take_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real trackers, if installed; neither is in the lock. Nothing leaves the machine."""
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    write_look(tmp_path, 2)
    tracker: Tracker = open_trackers((name,), tmp_path, {"seed": 7}, done=0)[name]  # type: ignore[arg-type]
    tracker.scalars(1, {"train/loss": 9.0})
    tracker.picture(2, "heldout/image_00", np.full((12, 20, 3), 200, np.uint8), "1. a red box")
    tracker.close()
    again = open_trackers((name,), tmp_path, {"seed": 7}, done=2)[name]  # type: ignore[arg-type]
    again.scalars(3, {"train/loss": 7.0})
    again.close()
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient((tmp_path / "mlruns").resolve().as_uri())
        run = (tmp_path / "mlflow_run_id").read_text().strip()
        history = client.get_metric_history(run, "train/loss")
        assert [(each.step, each.value) for each in history] == [(1, 9.0), (3, 7.0)]
        assert client.get_run(run).data.params["seed"] == "7"
        assert any("heldout" in each.path for each in client.list_artifacts(run, "heldout") or [])
    else:
        assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
