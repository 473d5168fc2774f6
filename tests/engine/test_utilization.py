"""Utilization of an engine, by a manual clock."""

from ureca.engine.utilization import LoadMeter, Utilization


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_with_regions_and_how_many_there_were():
    clock = Clock()
    load = LoadMeter(clock=clock)
    load.begin()
    clock.now += 1
    with load.regions():
        clock.now += 2
        with load.regions(3):
            clock.now += 4
        clock.now += 1
    clock.now += 2
    assert load.take() == Utilization(seconds=10, busy_seconds=7, region_seconds=2 + 4 * 4 + 1)
    clock.now += 3
    assert load.take() == Utilization(seconds=3, busy_seconds=0, region_seconds=0)


def test_regions_beyond_the_places_wait_and_are_not_counted():
    clock = Clock()
    load = LoadMeter(2, clock=clock)
    load.begin()
    with load.regions(5):
        clock.now += 1
        assert load.take() == Utilization(seconds=1, busy_seconds=1, region_seconds=2)


def test_nothing_is_counted_before_the_engine_is_ready():
    clock = Clock()
    load = LoadMeter(clock=clock)
    clock.now += 50
    assert load.take() == Utilization(seconds=0, busy_seconds=0, region_seconds=0)
    load.begin()
    clock.now += 1
    assert load.take().seconds == 1
