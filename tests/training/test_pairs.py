from dataclasses import replace
from pathlib import Path

import pytest

from ureca.corpus import ImageRow
from ureca.corpus.schema import Distractor
from ureca.model import CaptionerProcessor
from ureca.training.examples import LabeledImages
from ureca.training.index import Visit
from ureca.training.pairs import make_pairs, rejected_captions


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> CaptionerProcessor:
    return CaptionerProcessor.from_pretrained(str(tiny_base), tile_limit=1)


@pytest.fixture
def row(region_table: Path) -> ImageRow:
    """Four regions; of the last two the captions read alike."""
    row = LabeledImages(str(region_table))[3]
    captions = ["the first box", "the second box", "a box", "a box"]
    distractors = [(1, 2, 3), (2,), (3, 0), ()]
    regions = tuple(
        replace(region, caption=caption, distractors=tuple(Distractor(index=j, similarity=0.9) for j in others))
        for region, caption, others in zip(row.regions, captions, distractors, strict=True)
    )
    return replace(row, regions=regions)


def shown(row: ImageRow, processor: CaptionerProcessor, **changed: int) -> list[tuple[str, str]]:
    settings = {"regions_per_image": 9, "rejected_per_region": 2, "seed": 0, "epoch": 0, **changed}
    example = make_pairs(row, Visit(3, settings.pop("epoch")), processor, **settings)
    for chosen, rejected in example.pairs:
        assert example.regions[chosen].segmentation == example.regions[rejected].segmentation
        assert example.regions[chosen].query == example.regions[rejected].query == processor.query("unique")
    return [(example.regions[chosen].caption, example.regions[rejected].caption) for chosen, rejected in example.pairs]


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
    example = make_pairs(row, Visit(3, 0), processor, regions_per_image=9, rejected_per_region=2, seed=0)
    assert example.pairs == ((0, 1), (0, 2), (3, 4), (5, 6))
    assert len(example.regions) == 7
    assert len(shown(row, processor, rejected_per_region=1)) == 3
    assert len({chosen for chosen, _ in shown(row, processor, regions_per_image=2)}) == 2


def test_what_is_rejected_is_drawn_by_seed_and_epoch_alone(row: ImageRow, processor: CaptionerProcessor) -> None:
    drawn = [shown(row, processor, rejected_per_region=1, epoch=epoch) for epoch in range(8)]
    assert drawn == [shown(row, processor, rejected_per_region=1, epoch=epoch) for epoch in range(8)]
    assert len({str(each) for each in drawn}) > 1
    assert drawn != [shown(row, processor, rejected_per_region=1, epoch=epoch, seed=1) for epoch in range(8)]
