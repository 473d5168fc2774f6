from pathlib import Path

from ureca.training.monitor.tail import WorkerLogReader, log_event


def test_only_what_is_told_from_now_on_is_read_and_once(tmp_path: Path) -> None:
    log_event(tmp_path, "before")
    notes = WorkerLogReader(tmp_path)
    assert notes.new() == []
    log_event(tmp_path, "first")
    log_event(tmp_path, "second, é")
    assert notes.new() == ["first", "second, é"]
    with (tmp_path / "worker_log.jsonl").open("a") as file:
        file.write('{"time": 1, "te')
        file.flush()
        assert notes.new() == []
        file.write('xt": "third"}\n')
    assert notes.new() == ["third"]
    assert notes.new() == []


def test_a_run_without_notes_has_none(tmp_path: Path) -> None:
    assert WorkerLogReader(tmp_path).new() == []
    log_event(tmp_path / "absent", "lost")  # a folder that can't be written must not end a training
