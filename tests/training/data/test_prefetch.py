import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ureca.training.data.loader import Prefetch


def calls(count: int, made: list[int], seconds: Callable[[int], float] = lambda _: 0.0) -> Iterator[Callable[[], int]]:
    def call(number: int) -> int:
        made.append(number)
        time.sleep(seconds(number))
        return number

    for number in range(count):
        yield lambda number=number: call(number)  # type: ignore[misc]


def all_of(prefetch: Prefetch[int], ahead: int) -> list[int]:
    results = []
    while True:
        try:
            results.append(prefetch.next(ahead=ahead))
        except StopIteration:
            return results


@pytest.mark.parametrize(("ahead", "threads"), [(0, 0), (4, 0), (0, 1), (1, 1), (4, 3), (50, 2)])
def test_results_come_in_order_whichever_is_done_first(ahead: int, threads: int) -> None:
    first_is_slow = calls(20, [], lambda number: 0.02 if number % 4 == 0 else 0.0)
    prefetch = Prefetch(first_is_slow, threads=threads)
    assert all_of(prefetch, ahead) == list(range(20))
    prefetch.close()


def test_no_more_is_made_ahead_than_told() -> None:
    made: list[int] = []
    prefetch = Prefetch(calls(20, made))
    assert prefetch.next(ahead=3) == 0
    time.sleep(0.2)
    assert max(made) == 3
    prefetch.close()
    assert max(made) == 3


def test_an_error_comes_where_its_result_is_due_in_the_thread_that_asks() -> None:
    def wrong() -> int:
        raise ValueError(threading.current_thread().name)

    made: list[int] = []
    prefetch = Prefetch(iter([*calls(2, made), wrong, *calls(3, made)]))
    assert [prefetch.next(ahead=5), prefetch.next(ahead=5)] == [0, 1]
    with pytest.raises(ValueError, match="prefetch"):
        prefetch.next(ahead=5)
    prefetch.close()


def test_close_stops_the_threads_and_what_has_not_begun() -> None:
    made: list[int] = []
    prefetch = Prefetch(calls(1000, made, lambda _: 0.05))
    prefetch.next(ahead=100)
    prefetch.close()
    assert len(made) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_the_time_waited_is_that_of_whoever_asks() -> None:
    hidden = Prefetch(calls(5, [], lambda _: 0.03))
    for _ in range(5):
        hidden.next(ahead=2)
        time.sleep(0.06)
    hidden.close()
    due = Prefetch(calls(5, [], lambda _: 0.03), threads=0)
    all_of(due, 0)
    assert due.waited_seconds > 0.14
    assert hidden.waited_seconds < due.waited_seconds
