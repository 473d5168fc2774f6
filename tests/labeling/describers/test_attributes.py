"""Captions that say what was measured."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ureca.attributes.claims import parse_claims, picks_own_region
from ureca.attributes.measure import RegionAttributes, measure_tree
from ureca.attributes.vocabulary import COLORS
from ureca.corpus.read import photos_directory, read_sa1b
from ureca.labeling.describers.attributes import AttributesDescriber
from ureca.labeling.describers.base import DescribeRequest, Pass
from ureca.nano.scenes.draw import draw_scene
from ureca.regions.rle import Rle, encode_mask
from ureca.regions.tree import build_mask_tree

PASSES: tuple[Pass, ...] = ("short", "long", "unique")


def describe(
    image: np.ndarray, segmentations: Sequence[Rle], parents: Sequence[int]
) -> tuple[list[RegionAttributes], list[dict[str, str]]]:
    """The measured regions, and the captions of each by pass."""
    regions = measure_tree(image, segmentations, parents)
    describer = AttributesDescriber()

    def ask(index: int, pass_name: Pass) -> str:
        request = DescribeRequest(
            pass_name=pass_name,
            image=image,
            segmentations=tuple(segmentations),
            parents=tuple(parents),
            index=index,
            attributes=tuple(regions),
            children=tuple(child for child, parent in enumerate(parents) if parent == index),
        )
        return asyncio.run(describer.describe(request)).text

    return regions, [{name: ask(index, name) for name in PASSES} for index in range(len(regions))]


def describe_scene(seed: int):
    scene = draw_scene(seed)
    parents = [region.parent for region in scene.regions]
    return describe(scene.image, [region.segmentation for region in scene.regions], parents)


@pytest.fixture(scope="module")
def scenes():
    return [describe_scene(seed) for seed in range(7000, 7030)]


def painted(*boxes: tuple[int, int, int, int, str]) -> tuple[np.ndarray, list[Rle]]:
    """A gray picture of 100 x 100 with boxes (top, left, height, width, color), and their masks."""
    image = np.full((100, 100, 3), COLORS["gray"], np.uint8)
    masks = []
    for top, left, height, width, color in boxes:
        mask = np.zeros((100, 100), bool)
        mask[top : top + height, left : left + width] = True
        image[mask] = COLORS[color]
        masks.append(encode_mask(mask))
    return image, masks


def test_the_three_captions_of_a_part():
    image, masks = painted((10, 10, 40, 40, "red"), (13, 20, 8, 8, "blue"), (42, 22, 4, 16, "white"))
    _, captions = describe(image, masks, [-1, 0, 0])
    assert captions[0] == {
        "short": "a large red square object in the upper left",
        "long": "a large red smooth square object in the upper left of the picture; "
        "it has a tiny blue square part at its top and a tiny white thin part at its bottom",
        "unique": "the large red square object in the upper left",
    }
    assert captions[1] == {
        "short": "a tiny blue square part at the top of the red object",
        "long": "a tiny blue smooth square part in the upper left of the picture, at the top of the large red object",
        "unique": "the tiny blue square part in the upper left, at the top of the red object",
    }


def test_alike_parts_are_counted_and_ordered():
    image, masks = painted((10, 5, 20, 90, "green"), *((16, left, 8, 8, "white") for left in (35, 46, 57)))
    _, captions = describe(image, masks, [-1, 0, 0, 0])
    assert captions[0]["long"].endswith("; it has three tiny white square parts in its middle")
    ends = [captions[index]["unique"].split(", ")[-1] for index in (1, 2, 3)]
    assert ends == [f"the {rank} from the left of three alike" for rank in ("first", "second", "third")]


def test_no_more_is_said_than_needed():
    image, masks = painted((10, 10, 10, 10, "red"), (12, 12, 5, 5, "blue"), (70, 70, 10, 10, "red"))
    _, captions = describe(image, masks, [-1, 0, -1])
    assert captions[2]["unique"] == "the small red square object in the lower right"


def test_a_parent_s_words_tell_its_parts_apart():
    image, masks = painted(
        (5, 34, 20, 12, "red"), (8, 37, 6, 6, "white"), (5, 50, 14, 14, "red"), (6, 54, 6, 6, "white")
    )
    _, captions = describe(image, masks, [-1, 0, -1, 2])
    assert captions[1]["unique"] != captions[3]["unique"]
    assert "rectangular object" in captions[1]["unique"]


def test_regions_in_one_place_are_told_apart_by_size_or_cell():
    image, masks = painted((20, 20, 20, 20, "red"), (20, 20, 20, 14, "red"), (20, 20, 17, 14, "red"))
    regions, captions = describe(image, masks, [-1, -1, -1])
    assert all(picks_own_region(captions[k]["unique"], k, regions) for k in range(3)), captions


def test_asked_again_it_says_more():
    image, masks = painted((10, 10, 10, 10, "red"))
    regions = tuple(measure_tree(image, masks, [-1]) * 2)  # twice the same region: nothing tells them apart
    request = DescribeRequest(
        pass_name="unique",
        image=image,
        segmentations=(masks[0], masks[0]),
        parents=(-1, -1),
        index=0,
        attributes=regions,
        confused_with=(1,),
    )
    assert asyncio.run(AttributesDescriber().describe(request)).text.endswith(", in column two, row two")


def test_captions_of_drawn_scenes_are_unique_in_their_image(scenes):
    own, repeated, num_regions = 0, 0, 0
    for regions, captions in scenes:
        texts = [caption["unique"] for caption in captions]
        counts = Counter(texts)
        num_regions += len(texts)
        repeated += sum(counts[text] > 1 for text in texts)
        own += sum(picks_own_region(text, index, regions) for index, text in enumerate(texts))
    assert own / num_regions >= 0.99
    assert repeated / num_regions <= 0.01


def test_short_captions_alone_would_not_be_unique(scenes):
    own = [picks_own_region(c["short"], k, regions) for regions, captions in scenes for k, c in enumerate(captions)]
    assert np.mean(own) < 0.98


def test_captions_state_color_shape_size_and_place_and_nothing_untrue(scenes):
    for regions, captions in scenes:
        for region, caption in zip(regions, captions, strict=True):
            for text in caption.values():
                said = parse_claims(text)
                assert (said.color, said.shape, said.size) == (region.color, region.shape, region.size), text
                assert said.place in (None, region.place), text
                assert said.place_in_parent in (None, region.place_in_parent), text
                assert said.place or said.place_in_parent, text


def test_captions_are_short_and_start_in_lower_case(scenes):
    limits = {"short": 15, "long": 40, "unique": 28}
    usual = {"short": 13, "long": 36, "unique": 22}
    for name, limit in limits.items():
        lengths = [len(caption[name].split()) for _, captions in scenes for caption in captions]
        assert max(lengths) <= limit
        assert np.percentile(lengths, 95) <= usual[name]
    assert all(text[0].islower() for _, captions in scenes for caption in captions for text in caption.values())


def test_the_same_image_gets_the_same_captions():
    assert describe_scene(7)[1] == describe_scene(7)[1]


@pytest.mark.parametrize("photo", sorted(photos_directory().glob("*.jpg")), ids=lambda path: path.stem)
def test_captions_of_real_photos_are_unique_in_their_image(photo: Path):
    loaded = read_sa1b(photo, photo.with_suffix(".json"))
    tree = build_mask_tree(loaded.masks, loaded.size)
    regions, captions = describe(
        loaded.image,
        [region.segmentation for region in tree.regions],
        [region.parent for region in tree.regions],
    )
    own = [picks_own_region(caption["unique"], index, regions) for index, caption in enumerate(captions)]
    assert np.mean(own) >= 0.97
