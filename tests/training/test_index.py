from collections import Counter

import pytest

from ureca.training.index import STYLES, StepIndex, choose_regions, choose_style


def index(num_images: int = 23, images_per_step: int = 6, seed: int = 0) -> StepIndex:
    return StepIndex(num_images=num_images, images_per_step=images_per_step, seed=seed)


def images(visits: list) -> list[int]:
    return [visit.image for visit in visits]


def test_every_image_comes_once_per_epoch() -> None:
    steps = index()
    stream = [visit for step in range(2 * 23) for visit in steps.visits(step)]
    for epoch in range(12):
        assert sorted(v.image for v in stream if v.epoch == epoch) == list(range(23))


def test_epochs_and_seeds_shuffle_differently() -> None:
    stream = [visit for step in range(8) for visit in index().visits(step)]
    first, second = stream[:23], stream[23:46]
    assert images(first) != images(second)
    assert images(first) != sorted(images(first))
    assert images(index(seed=1).visits(0)) != images(index().visits(0))


@pytest.mark.parametrize(("num_workers", "images_per_device"), [(1, 6), (1, 1), (2, 3), (2, 2), (3, 1), (6, 4)])
def test_a_step_holds_the_same_images_for_any_number_of_workers(num_workers: int, images_per_device: int) -> None:
    steps = index()
    for step in range(9):
        taken = [
            visit
            for rank in range(num_workers)
            for portion in steps.passes(step, rank=rank, num_workers=num_workers, images_per_device=images_per_device)
            for visit in portion
        ]
        assert Counter(taken) == Counter(steps.visits(step))


def test_an_image_mostly_comes_back_to_the_same_worker() -> None:
    steps = index(num_images=200, images_per_step=8)
    taken = Counter(
        (visit.image, rank)
        for step in range(20 * 25)
        for rank in range(2)
        for portion in steps.passes(step, rank=rank, num_workers=2, images_per_device=4)
        for visit in portion
    )
    assert sum(max(taken[image, 0], taken[image, 1]) for image in range(200)) > 0.75 * 20 * 200


def test_workers_have_equally_many_passes() -> None:
    # The last portion of each is short: 5 images, 2 at a time. Unequal counts would hang the collectives.
    steps = index(images_per_step=10)
    counts = {
        rank: [len(portion) for portion in steps.passes(4, rank=rank, num_workers=2, images_per_device=2)]
        for rank in range(2)
    }
    assert counts == {0: [2, 2, 1], 1: [2, 2, 1]}


def test_a_step_larger_than_the_table_takes_images_again() -> None:
    steps = index(num_images=4, images_per_step=10)
    assert set(images(steps.visits(0))) == {0, 1, 2, 3}
    assert [visit.epoch for visit in steps.visits(0)] == [0] * 4 + [1] * 4 + [2] * 2


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2, 8), (0.5, 2), (0.01, 1), (6 / 23, 1)])
def test_number_of_steps(epochs: float, steps: int) -> None:
    assert index().num_steps(epochs) == steps


def test_at_most_so_many_regions_and_others_in_the_next_epoch() -> None:
    ids = [str(i) for i in range(40)]
    chosen = [choose_regions(ids, 8, seed=0, epoch=epoch, image_id="a") for epoch in range(100)]
    assert all(len(c) == 8 == len(set(c)) and c == sorted(c) for c in chosen)
    assert len({tuple(c) for c in chosen}) == 100
    assert {i for c in chosen for i in c} == set(range(40))
    assert choose_regions(ids[:8], 8, seed=0, epoch=3, image_id="a") == list(range(8))
    assert chosen[5] == choose_regions(ids, 8, seed=0, epoch=5, image_id="a")


def test_every_style_is_asked_for_unique_most_often_and_repeatably() -> None:
    draws = [
        choose_style(seed=0, epoch=epoch, image_id="a", region_id=str(region))
        for epoch in range(30)
        for region in range(30)
    ]
    counts = Counter(draws)
    assert set(counts) == set(STYLES)
    assert min(counts.values()) > 190
    assert 0.45 < counts["unique"] / len(draws) < 0.55
    assert draws[31] == choose_style(seed=0, epoch=1, image_id="a", region_id="1")
