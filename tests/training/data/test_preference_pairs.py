from dataclasses import replace
from pathlib import Path

import pytest

from ureca.corpus.schema import Distractor, ImageRow
from ureca.corpus.table import iter_images
from ureca.model.processor import CaptionerProcessor
from ureca.training.data.examples import make_pairs, rejected_captions
from ureca.training.data.sampler import Visit


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> CaptionerProcessor:
    return CaptionerProcessor.from_pretrained(str(tiny_base), tile_limit=1)


@pytest.fixture
def row(region_table: Path) -> ImageRow:
    """Four regions; of the last two the captions read alike."""
    row = next(row for row in iter_images(region_table) if row.image_id == "image03")
    captions = ["the first box", "the second box", "a box", "a box"]
    distractors = [(1, 2, 3), (2,), (3, 0), ()]
    regions = tuple(
        replace(region, caption=caption, distractors=tuple(Distractor(index=j, similarity=0.9) for j in others))
        for region, caption, others in zip(row.regions, captions, distractors, strict=True)
    )
    return replace(row, regions=regions)


def shown(row: ImageRow, processor: CaptionerProcessor, **changed: int) -> list[tuple[str, str]]:
    settings = {"rejected_per_region": 2, "seed": 0, "epoch": 0, **changed}
    regions, pairs = make_pairs(row, Visit(3, settings.pop("epoch"), (0, 1, 2)), processor, **settings)
    for chosen, rejected in pairs:
        assert regions[chosen].segmentation == regions[rejected].segmentation
        assert regions[chosen].query == regions[rejected].query == processor.query("unique")
    return [(regions[chosen].caption, regions[rejected].caption) for chosen, rejected in pairs]


def test_captions_that_read_alike_are_no_pair_and_none_is_rejected_twice(row: ImageRow) -> None:
    assert rejected_captions(row.regions) == {
        0: ["the second box", "a box"],
        1: ["a box"],
        2: ["the first box"],
    }


def test_a_caption_that_was_judged_false_is_not_chosen(row: ImageRow) -> None:
    first, *rest = row.regions
    regions = [replace(first, flags=("judged_false",)), *rest]
    assert set(rejected_captions(regions)) == {1, 2}
    assert rejected_captions(regions)[2] == ["the first box"]  # it is still not of this region


def test_an_example_shows_the_own_caption_once_and_up_to_k_rejected(
    row: ImageRow, processor: CaptionerProcessor
) -> None:
    assert sorted(shown(row, processor)) == [
        ("a box", "the first box"),
        ("the first box", "a box"),
        ("the first box", "the second box"),
        ("the second box", "a box"),
    ]
    regions, pairs = make_pairs(row, Visit(3, 0, (0, 1, 2)), processor, rejected_per_region=2, seed=0)
    assert pairs == ((0, 1), (0, 2), (3, 4), (5, 6))
    assert len(regions) == 7
    assert len(shown(row, processor, rejected_per_region=1)) == 3


def test_a_visit_s_regions_are_counted_among_those_that_have_a_pair(
    row: ImageRow, processor: CaptionerProcessor
) -> None:
    first, *rest = row.regions
    bare = replace(row, regions=(replace(first, distractors=()), *rest))
    regions, pairs = make_pairs(bare, Visit(3, 0, (1,)), processor, rejected_per_region=2, seed=0)
    assert [region.caption for region in regions] == ["a box", "the first box"]
    assert regions[0].segmentation == row.regions[2].segmentation
    assert pairs == ((0, 1),)


def test_what_is_rejected_is_drawn_by_seed_and_epoch_alone(row: ImageRow, processor: CaptionerProcessor) -> None:
    drawn = [shown(row, processor, rejected_per_region=1, epoch=epoch) for epoch in range(8)]
    assert drawn == [shown(row, processor, rejected_per_region=1, epoch=epoch) for epoch in range(8)]
    assert len({str(each) for each in drawn}) > 1
    assert drawn != [shown(row, processor, rejected_per_region=1, epoch=epoch, seed=1) for epoch in range(8)]
