from pathlib import Path

import pytest

from ureca.training.monitor.metrics import FILE, MetricsWriter, last_line, loss_first_last, read_metrics


def write(directory: Path, first_step: int, losses: list[float], started: float = 0.0) -> None:
    ticks = iter([started, *(started + 2.0 * i for i in range(1, len(losses) + 1))])
    writer = MetricsWriter(directory, first_step=first_step, clock=lambda: next(ticks))
    for offset, loss in enumerate(losses, start=1):
        writer.write(step=first_step + offset, loss=loss)
    writer.close()


def test_steps_done_again_replace_their_earlier_lines(tmp_path: Path) -> None:
    write(tmp_path, 0, [9.0, 8.0, 7.0, 6.0, 5.0])
    write(tmp_path, 3, [6.5, 5.5, 4.5], started=100.0)
    lines = read_metrics(tmp_path / FILE)
    assert [(line["step"], line["loss"]) for line in lines] == [
        (1, 9.0), (2, 8.0), (3, 7.0), (4, 6.5), (5, 5.5), (6, 4.5)
    ]  # fmt: skip
    assert [line["seconds"] for line in lines] == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 0, [9.0, 8.0])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"seconds": 6.0, "st')
    assert [line["step"] for line in read_metrics(tmp_path / FILE)] == [1, 2]
    newest = last_line(tmp_path / FILE)
    assert newest is not None
    assert newest["step"] == 2


def test_newest_line_of_a_long_file_and_of_none(tmp_path: Path) -> None:
    assert last_line(tmp_path / FILE) is None
    write(tmp_path, 0, [1.0] * 300)
    newest = last_line(tmp_path / FILE)
    assert newest is not None
    assert newest["step"] == 300


@pytest.mark.parametrize(("count", "first", "last"), [(1, 0.0, 0.0), (10, 0.0, 9.0), (100, 2.0, 97.0)])
def test_first_and_last_loss_are_means_over_a_twentieth(count: int, first: float, last: float) -> None:
    assert loss_first_last([{"loss": float(i)} for i in range(count)]) == (first, last)
