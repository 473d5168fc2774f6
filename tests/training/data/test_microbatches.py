from collections import Counter

import numpy as np
import pytest

from ureca.training.config import BatchConfig
from ureca.training.data.microbatches import ImageSlice, Microbatches, load_balance, partition
from ureca.training.data.sampler import Lengths, StepSampler, Visit


def index(num_images: int, most_regions: int, seed: int = 0, **batch: int) -> StepSampler:
    draw = np.random.default_rng(seed)
    regions = draw.integers(1, most_regions + 1, num_images)
    lengths = Lengths(
        keys=draw.integers(0, 2**63, num_images).astype(np.uint64),
        regions=regions,
        prefix=draw.integers(50, 80, num_images),
        mask=draw.integers(4, 20, regions.sum()),
        query=np.array([3, 4, 5]),
        captions=draw.integers(2, 30, (regions.sum(), 3)),
    )
    return StepSampler(lengths, BatchConfig(**batch), seed=seed)


def shown(visits: list[Visit]) -> Counter[tuple[int, int, int]]:
    return Counter((visit.epoch, visit.image, region) for visit in visits for region in visit.regions)


def passes_of(steps: StepSampler, step: int, *, workers: int, budget: int) -> list[Microbatches]:
    parts = [ImageSlice.of(visit, steps) for visit in steps.visits(step)]
    return partition(parts, num_workers=workers, tokens_per_device=budget)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [150, 400, 5000])
@pytest.mark.parametrize("batch", [{"images_per_step": 5}, {"tokens_per_step": 3000}, {"regions_per_step": 7}], ids=str)
def test_a_step_shows_the_same_for_any_number_of_workers_and_any_pass(
    workers: int, budget: int, batch: dict[str, int]
) -> None:
    steps = index(23, 60, **batch)
    for step in range(6):
        shares = passes_of(steps, step, workers=workers, budget=budget)
        parts = [part for microbatches in shares for one in microbatches for part in one]
        assert shown([part.visit for part in parts]) == shown(steps.visits(step))
        assert {len(microbatches) for microbatches in shares} == {len(shares[0])}, (
            "unequal counts would hang the collectives"
        )
        assert len(shares) == workers
        assert all(sum(part.tokens for part in one) <= budget for microbatches in shares for one in microbatches)
        for part in parts:
            assert part.branches == tuple(steps.branch_tokens(part.visit))
            assert part.prefix == steps.lengths.prefix[part.visit.image]


def test_a_branch_longer_than_a_pass_is_alone_in_it() -> None:
    shares = passes_of(index(9, 9, images_per_step=4), 0, workers=2, budget=1)
    assert all(
        len(one) <= 1 and all(len(part.branches) == 1 for part in one)
        for microbatches in shares
        for one in microbatches
    )


def test_an_image_of_many_regions_is_split_and_one_of_few_is_not() -> None:
    part = ImageSlice(Visit(0, 0, tuple(range(300))), prefix=100, branches=(50,) * 300)
    few = ImageSlice(Visit(1, 0, (0, 1, 2)), prefix=100, branches=(50,) * 3)
    (microbatches,) = partition([part, few], num_workers=1, tokens_per_device=2100)
    assert [len(piece.visit.regions) for one in microbatches for piece in one if piece.visit.image == 1] == [3]
    assert len(microbatches) == 8  # 15,000 tokens of branches, 2,000 a pass


def test_workers_are_busy_alike_where_images_differ() -> None:
    steps = index(200, 60, tokens_per_step=40_000)
    shares = [load_balance(passes_of(steps, step, workers=4, budget=4000)) for step in range(5)]
    assert min(shares) > 0.9
    # Images dealt out in equal numbers wait longer for the fullest.
    visits = [ImageSlice.of(visit, steps) for visit in steps.visits(0)]
    dealt = [[visits[worker::4]] for worker in range(4)]
    assert load_balance(dealt) < min(shares)


def test_an_image_mostly_comes_back_to_the_same_worker() -> None:
    steps = index(200, 2, images_per_step=8)
    taken: Counter[tuple[int, int]] = Counter()
    for step in range(20 * 25):
        for rank, microbatches in enumerate(passes_of(steps, step, workers=2, budget=4000)):
            taken.update((part.visit.image, rank) for one in microbatches for part in one)
    assert sum(max(taken[image, 0], taken[image, 1]) for image in range(200)) > 0.75 * sum(taken.values())


def test_one_image_keeps_as_many_workers_busy_as_its_regions_are_worth() -> None:
    large = ImageSlice(Visit(0, 0, tuple(range(16))), prefix=100, branches=(100,) * 16)
    assert [len(microbatches[0]) for microbatches in partition([large], num_workers=4, tokens_per_device=5000)] == [
        1,
        1,
        1,
        1,
    ]
    small = ImageSlice(Visit(0, 0, (0, 1)), prefix=1800, branches=(100, 100))
    shares = partition([small], num_workers=3, tokens_per_device=5000)
    assert sorted(len(microbatches[0]) for microbatches in shares) == [0, 0, 1], (
        "idle: its prefix outweighs what halving saves"
    )
    assert load_balance(shares) == pytest.approx(1 / 3)
