"""Region proposals by color."""

import numpy as np
import pytest
from PIL import Image

from ureca.corpus.read import photos_directory
from ureca.proposals.config import ProposalConfig
from ureca.proposals.segments import propose_segments
from ureca.regions.rle import decode_rle, encode_mask, iou_matrix, rle_area
from ureca.regions.tree import build_mask_tree

HEIGHT, WIDTH = 300, 400


@pytest.fixture(scope="module")
def nested() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draw a disc on a square on gray, and a bar, with camera-like noise."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    masks = {
        "square": (rows > 40) & (rows < 220) & (columns > 60) & (columns < 240),
        "disc": (rows - 130) ** 2 + (columns - 150) ** 2 < 45**2,
        "bar": (rows > 30) & (rows < 270) & (columns > 310) & (columns < 340),
    }
    image = np.full((HEIGHT, WIDTH, 3), 128.0)
    for name, color in (("square", (40, 70, 200)), ("disc", (220, 50, 40)), ("bar", (40, 160, 60))):
        image[masks[name]] = color
    image += np.random.default_rng(0).normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), masks


def test_segments_find_prominent_nested_regions(nested):
    image, truth = nested
    masks = propose_segments(image)
    tree = build_mask_tree(masks, (HEIGHT, WIDTH))
    found = {}
    for name, mask in truth.items():
        overlaps = iou_matrix([encode_mask(mask), *[each.segmentation for each in tree.regions]])[0, 1:]
        found[name] = int(overlaps.argmax())
        assert overlaps.max() > 0.9, name
    assert found["square"] in tree.ancestors(found["disc"])
    assert tree.regions[found["bar"]].parent not in (found["square"], found["disc"])


def test_segments_have_no_holes(nested):
    image, truth = nested
    square = max(
        propose_segments(image),
        key=lambda each: iou_matrix([encode_mask(truth["square"]), each.segmentation])[0, 1],
    )
    assert decode_rle(square.segmentation)[130, 150], "the disc's middle belongs to the square"


def test_segments_are_deterministic(nested):
    assert propose_segments(nested[0]) == propose_segments(nested[0].copy())


def test_segments_of_a_uniform_image_are_empty():
    assert propose_segments(np.full((50, 80, 3), 90, np.uint8)) == []


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (20, 900)])
def test_segments_of_small_and_thin_images(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert all(tuple(mask.segmentation["size"]) == size for mask in propose_segments(image))


@pytest.mark.parametrize("name", ["astronaut", "china", "flower"])
def test_segments_of_photos_have_sensible_number_and_size(name):
    image = np.asarray(Image.open(photos_directory() / f"{name}.jpg").convert("RGB"))
    masks = propose_segments(image)
    shares = [rle_area(mask.segmentation) / (image.shape[0] * image.shape[1]) for mask in masks]
    assert 12 <= len(masks) <= 24
    assert [mask.region_id for mask in masks] == [str(number) for number in range(1, len(masks) + 1)]
    assert shares == sorted(shares, reverse=True)
    assert 0.003 < min(shares) < max(shares) < 0.66
    assert max(region.depth for region in build_mask_tree(masks, image.shape[:2]).regions) >= 1
    few = propose_segments(image, ProposalConfig(max_regions=5, max_area_share=0.2))
    assert len(few) == 5
    assert max(rle_area(mask.segmentation) for mask in few) < 0.21 * image.shape[0] * image.shape[1]
