from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ureca.training.config import BatchConfig
from ureca.training.data.sampler import STYLES, Lengths, StepSampler, Visit, choose_regions, draw_styles

NUM_IMAGES = 23


def lengths(num_images: int = NUM_IMAGES, seed: int = 0, most_regions: int = 40) -> Lengths:
    draw = np.random.default_rng(seed)
    regions = draw.integers(1, most_regions + 1, num_images)
    return Lengths(
        keys=draw.integers(0, 2**63, num_images).astype(np.uint64),
        regions=regions,
        prefix=draw.integers(20, 60, num_images),
        mask=draw.integers(4, 20, regions.sum()),
        query=np.array([3, 4, 5]),
        captions=draw.integers(2, 30, (regions.sum(), 3)),
    )


def index(seed: int = 0, of: Lengths | None = None, **batch: int) -> StepSampler:
    return StepSampler(of or lengths(), BatchConfig(**(batch or {"images_per_step": 6})), seed=seed)


def shown(visits: list[Visit]) -> list[tuple[int, int, int]]:
    return [(visit.epoch, visit.image, region) for visit in visits for region in visit.regions]


STEPS = [
    {"images_per_step": 6},
    {"regions_per_step": 16},
    {"tokens_per_step": 500},
    {"tokens_per_step": 90},
    {"regions_per_step": 16, "regions_per_visit": 3},
    {"tokens_per_step": 700, "regions_per_visit": 7},
    {"images_per_step": 5, "regions_per_visit": 8},
    {"tokens_per_step": 10**6},
]


@pytest.mark.parametrize("batch", STEPS, ids=str)
def test_every_region_comes_once_per_epoch(batch: dict[str, int]) -> None:
    steps = index(**batch)
    stream: list[tuple[int, int, int]] = []
    number = 0
    while not stream or stream[-1][0] < 4:
        stream += shown(steps.visits(number))
        number += 1
    all_regions = {(image, region) for image, count in enumerate(lengths().regions) for region in range(count)}
    for epoch in range(4):
        of_epoch = [(image, region) for e, image, region in stream if e == epoch]
        assert len(of_epoch) == len(all_regions)
        assert set(of_epoch) == all_regions
    assert [epoch for epoch, *_ in stream] == sorted(epoch for epoch, *_ in stream)


@pytest.mark.parametrize("batch", STEPS, ids=str)
def test_a_step_is_known_by_its_number_alone(batch: dict[str, int]) -> None:
    """Whoever goes on after a kill makes a new index and asks for the step that comes next."""
    uninterrupted = index(**batch)
    before = [uninterrupted.visits(step) for step in range(9)]
    for killed_after in (0, 3, 7):
        resumed = index(**batch)
        assert [resumed.visits(step) for step in range(killed_after, 9)] == before[killed_after:]


def test_the_stream_is_the_same_however_it_is_cut() -> None:
    streams = [
        [each for step in range(60) for each in shown(index(**batch).visits(step))][:500]
        for batch in ({"images_per_step": 4}, {"regions_per_step": 17}, {"tokens_per_step": 400})
    ]
    assert streams[0] == streams[1] == streams[2]


def test_epochs_and_seeds_shuffle_differently() -> None:
    stream = [visit for step in range(8) for visit in index().visits(step)]
    first, second = ([visit.image for visit in part] for part in (stream[:23], stream[23:46]))
    assert first != second
    assert first != sorted(first)
    assert [v.image for v in index(seed=1).visits(0)] != [v.image for v in index().visits(0)]


def test_a_step_of_images_or_regions_has_exactly_so_many() -> None:
    assert {len(index(images_per_step=6).visits(step)) for step in range(12)} == {6}
    assert {len(shown(index(regions_per_step=16).visits(step))) for step in range(40)} == {16}


@pytest.mark.parametrize("budget", [200, 500, 3000])
def test_tokens_fill_a_step_and_do_not_exceed_it(budget: int) -> None:
    steps = index(tokens_per_step=budget)
    sizes, prefixes = [], []
    for step in range(steps.num_steps(4) - 1):
        visits = steps.visits(step)
        prefix = [int(steps.lengths.prefix[visit.image]) for visit in visits]
        prefixes += prefix
        sizes.append(sum(prefix) + sum(int(steps.branch_tokens(visit).sum()) for visit in visits))
    assert max(sizes) <= budget
    # What stays free is less than the longest branch with a prefix that it does not outweigh.
    assert min(sizes) > budget - 60 - 2 * 60
    # Images that are cut bear their prefix twice, but never for less than it weighs.
    begun = [visit for step in range(40) for visit in steps.visits(step)[:-1]]
    last = [steps.visits(step)[-1] for step in range(40)]
    for visit in last:
        if len(visit.regions) < steps.lengths.regions[visit.image] and visit.regions[0] == 0 and len(begun):
            alone = len(steps.visits(0)) == 1
            assert alone or steps.branch_tokens(visit).sum() >= steps.lengths.prefix[visit.image] or budget == 200


def test_what_no_step_has_room_for_comes_alone() -> None:
    steps = index(tokens_per_step=1)
    assert all(len(shown(steps.visits(step))) == 1 for step in range(30))


def test_few_and_many_regions_fill_steps_alike() -> None:
    few, many = (lengths(50, most_regions=most) for most in (3, 300))
    for of in (few, many):
        steps = index(of=of, tokens_per_step=4000)
        sizes = [
            sum(int(of.prefix[visit.image]) + int(steps.branch_tokens(visit).sum()) for visit in steps.visits(step))
            for step in range(8)
        ]
        assert min(sizes) > 0.9 * 4000


def test_a_step_larger_than_the_table_takes_images_again() -> None:
    steps = index(of=lengths(4), images_per_step=10)
    assert [visit.epoch for visit in steps.visits(0)] == [0] * 4 + [1] * 4 + [2] * 2
    assert {visit.image for visit in steps.visits(0)} == {0, 1, 2, 3}


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2, 8), (0.5, 2), (0.01, 1), (6 / 23, 1)])
def test_number_of_steps_of_images(epochs: float, steps: int) -> None:
    assert index().num_steps(epochs) == steps


@pytest.mark.parametrize("batch", STEPS, ids=str)
@pytest.mark.parametrize("epochs", [0.3, 1, 2.5])
def test_the_steps_of_so_many_epochs_are_the_fewest_that_show_them(batch: dict[str, int], epochs: float) -> None:
    steps = index(**batch)
    count = steps.num_steps(epochs)
    upto = [len([each for step in range(n) for each in shown(steps.visits(step))]) for n in (count - 1, count)]
    target = round(epochs * lengths().regions.sum())
    slack = 40 * 23 if "images_per_step" in batch else 0  # there parts of an epoch are counted in visits
    assert upto[0] - slack < target <= upto[1] + slack


def test_an_epoch_shows_at_most_so_many_regions_of_an_image_and_others_in_the_next() -> None:
    steps = index(images_per_step=NUM_IMAGES, regions_per_image=8)
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(60):
        for visit in steps.visits(epoch):
            assert len(visit.regions) == min(8, lengths().regions[visit.image])
            assert list(visit.regions) == sorted(set(visit.regions))
            seen.update((visit.image, region) for region in visit.regions)
    assert len(seen) == lengths().regions.sum()


def test_portions_of_an_image_are_equal_and_apart() -> None:
    steps = index(images_per_step=1, regions_per_visit=16)
    of_epoch = [steps.visits(step)[0] for step in range(steps.num_visits)]
    by_image: dict[int, list[int]] = {}
    for place, visit in enumerate(of_epoch):
        by_image.setdefault(visit.image, []).append(place)
        assert len(visit.regions) <= 16
    for image, places in by_image.items():
        sizes = [len(of_epoch[place].regions) for place in places]
        assert len(places) == -(-lengths().regions[image] // 16)
        assert max(sizes) - min(sizes) <= 1
    assert any(b - a > 1 for places in by_image.values() for a, b in pairwise(places))


def test_a_region_with_several_captions_is_that_many_branches() -> None:
    some = lengths()
    region, style = np.array([7, 8]), np.array([2, 0])
    one = some.branch(region, style)
    two = replace(some, branches=np.full(len(some.mask), 2)).branch(region, style)
    assert (two - one == some.mask[region] + some.query[style]).all()


def test_regions_are_drawn_anew_each_epoch_and_repeatably() -> None:
    drawn = [tuple(choose_regions(40, seed=0, epoch=epoch, key=5)[:8].tolist()) for epoch in range(100)]
    assert len(set(drawn)) == 100
    assert {region for regions in drawn for region in regions} == set(range(40))
    assert drawn[5] == tuple(choose_regions(40, seed=0, epoch=5, key=5)[:8].tolist())


def test_every_style_is_asked_for_unique_most_often_and_repeatably() -> None:
    draws = np.concatenate([draw_styles(0, epoch, np.full(30, 7), np.arange(30)) for epoch in range(30)])
    counts = Counter(STYLES[style] for style in draws)
    assert set(counts) == set(STYLES)
    assert min(counts.values()) > 190
    assert 0.45 < counts["unique"] / len(draws) < 0.55
    assert draws[31] == draw_styles(0, 1, np.array([7]), np.array([1]))[0]
    assert (draw_styles(1, 0, np.full(30, 7), np.arange(30)) != draws[:30]).any()


def test_a_region_s_style_does_not_depend_on_the_other_images() -> None:
    some = lengths()
    fewer = replace(
        some,
        keys=some.keys[1:],
        regions=some.regions[1:],
        prefix=some.prefix[1:],
        mask=some.mask[some.regions[0] :],
        captions=some.captions[some.regions[0] :],
    )
    visit = Visit(3, 2, (0, 1, 4))
    assert (index(of=some).styles(visit) == index(of=fewer).styles(replace(visit, image=2))).all()
