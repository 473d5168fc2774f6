"""Atomic folders and JSON-lines tails."""

import pytest

from ureca.storage.local import JsonlTail, atomic_folder


def test_atomic_folder_replaces_target_on_success(tmp_path):
    target = tmp_path / "below" / "model"
    for content in ("first", "second"):
        with atomic_folder(target) as partial:
            assert partial.parent == target.parent
            (partial / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_atomic_folder_keeps_target_after_an_error(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")

    def write() -> None:
        with atomic_folder(target) as partial:
            (partial / "weights").write_text("new")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert (target / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_atomic_folder_without_overwrite_replaces_empty_target(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with atomic_folder(target, overwrite=False) as partial:
        (partial / "weights").write_text("new")
    assert [path.name for path in target.iterdir()] == ["weights"]


def test_atomic_folder_without_overwrite_keeps_files_added_since(tmp_path):
    target = tmp_path / "model"

    def write() -> None:
        with atomic_folder(target, overwrite=False) as partial:
            (partial / "weights").write_text("new")
            target.mkdir()
            (target / "other").write_text("theirs")

    with pytest.raises(OSError, match="not empty"):
        write()
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_jsonl_tail_returns_complete_new_lines_once(tmp_path):
    path = tmp_path / "log.jsonl"
    tail = JsonlTail(path)
    assert tail.new() == []
    path.write_text('{"step": 1}\nnot json\n{"step": 2')
    assert tail.new() == [{"step": 1}]
    with path.open("a") as file:
        file.write('}\n{"step": 3}\n')
    assert tail.new() == [{"step": 2}, {"step": 3}]
    assert tail.new() == []


def test_jsonl_tail_rereads_a_replaced_file(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    tail = JsonlTail(path)
    tail.new()
    (tmp_path / "other").write_text('{"step": 1}\n')
    (tmp_path / "other").replace(path)
    assert tail.new() == [{"step": 1}]


def test_jsonl_tail_from_end_skips_present_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    tail = JsonlTail(path, from_end=True)
    with path.open("a") as file:
        file.write('{"step": 2}\n')
    assert tail.new() == [{"step": 2}]
