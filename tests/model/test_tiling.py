"""Images are cut as InternVL's own code cuts them: the same grid for every size, and the same pixels."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from support.captioners import WORDS
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

from ureca.corpus.read import photos_directory
from ureca.model.internvl.official_layout import IMAGENET_MEAN, IMAGENET_STD
from ureca.model.processor import CaptionerProcessor
from ureca.nano.architecture import nano_processor, nano_tokenizer

TILE_PX = 448
LIMITS = (1, 6, 12)


# InternVL's published rule (internvl/train/dataset.py: dynamic_preprocess, find_closest_aspect_ratio), written out.


@functools.cache
def target_ratios(min_num: int, max_num: int) -> list[tuple[int, int]]:
    ratios = {
        (i, j)
        for n in range(min_num, max_num + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if min_num <= i * j <= max_num
    }
    return sorted(ratios, key=lambda ratio: ratio[0] * ratio[1])


def published_grid(width: int, height: int, min_num: int, max_num: int, image_size: int) -> tuple[int, int]:
    best, best_difference = (1, 1), float("inf")
    for ratio in target_ratios(min_num, max_num):
        difference = abs(width / height - ratio[0] / ratio[1])
        if difference < best_difference:
            best, best_difference = ratio, difference
        elif difference == best_difference and width * height > 0.5 * image_size**2 * ratio[0] * ratio[1]:
            best = ratio
    return best


def published_tiles(image: Image.Image, min_num: int, max_num: int, image_size: int) -> list[Image.Image]:
    """Tiles row by row, the thumbnail last where there is more than one; resized by PIL, bicubic."""
    columns, rows = published_grid(*image.size, min_num, max_num, image_size)
    canvas = image.resize((image_size * columns, image_size * rows), Image.Resampling.BICUBIC)
    corners = [(i % columns * image_size, i // columns * image_size) for i in range(columns * rows)]
    tiles = [canvas.crop((x, y, x + image_size, y + image_size)) for x, y in corners]
    if len(tiles) > 1:
        tiles.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return tiles


@pytest.fixture(scope="module")
def processors() -> dict[int, CaptionerProcessor]:
    """CaptionerProcessors of InternVL's tile size by tile limit."""
    tokenizer = nano_tokenizer(WORDS * 20, num_words=330)
    made = {}
    for limit in LIMITS:
        hf = nano_processor(tokenizer)
        size = {"height": TILE_PX, "width": TILE_PX}
        # as in the hub's `-hf` repositories: one tile, or up to 12, which CaptionerProcessor has to change
        hf.image_processor = GotOcr2ImageProcessor(
            size=size, crop_to_patches=False, max_patches=12, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
        )
        made[limit] = CaptionerProcessor(hf, tile_limit=limit)
    return made


def drawn_sizes() -> list[tuple[int, int]]:
    """10,000 (height, width): any, of one ratio exactly (where grids tie), very long, and at the tie's border."""
    rng = np.random.default_rng(0)
    usual = rng.integers(8, 4000, (4000, 2))
    exact = rng.integers(1, 13, (4000, 2)) * rng.integers(20, 500, (4000, 1))
    long = np.stack([rng.integers(1, 60, 1000), rng.integers(500, 9000, 1000)], axis=1)
    long[::2] = long[::2, ::-1]
    half = np.sqrt(0.5 * TILE_PX**2 * rng.integers(1, 13, 1000))
    border = (half + rng.integers(-2, 3, 1000)).astype(int)
    return [tuple(size) for size in np.concatenate([usual, exact, long, np.stack([border, border], 1)]).tolist()]


@pytest.mark.parametrize("limit", LIMITS)
def test_grids_are_the_published_ones_for_10_000_sizes(processors: dict[int, CaptionerProcessor], limit: int) -> None:
    processor = processors[limit]
    sizes = drawn_sizes()
    assert len(sizes) == 10_000
    seen = set()
    for height, width in sizes:
        grid = published_grid(width, height, 1, limit, TILE_PX)
        assert processor.grid((height, width)) == grid, (height, width)
        # transformers' own count, which it cuts by: grid and thumbnail
        count = processor.image_processor.get_number_of_image_patches(height, width, {})
        assert count == grid[0] * grid[1] + (grid[0] * grid[1] > 1), (height, width)
        seen.add(grid)
    assert len(seen) == {1: 1, 6: 14, 12: 35}[limit]  # every grid there is was asked for


def test_another_rule_for_ties_is_noticed(processors: dict[int, CaptionerProcessor]) -> None:
    def first_of_ties(width: int, height: int, limit: int) -> tuple[int, int]:
        return min(target_ratios(1, limit), key=lambda ratio: abs(width / height - ratio[0] / ratio[1]))

    differing = [size for size in drawn_sizes() if first_of_ties(size[1], size[0], 12) != processors[12].grid(size)]
    assert len(differing) > 100


def smooth_noise(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


IMAGES = {
    "photo": lambda: Image.open(photos_directory() / "coffee.jpg").convert("RGB"),
    "wide": lambda: smooth_noise(600, 1500),
    "tall": lambda: smooth_noise(1100, 500),
    "small": lambda: smooth_noise(120, 200),
    "square": lambda: smooth_noise(1000, 1000),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("limit", LIMITS)
def test_pixels_are_the_published_ones(processors: dict[int, CaptionerProcessor], name: str, limit: int) -> None:
    """PIL's bicubic against torchvision's with antialiasing: each rounds to 8 bits in its own places."""
    image = IMAGES[name]()
    published = np.stack([np.asarray(tile) for tile in published_tiles(image, 1, limit, TILE_PX)]).astype(float)
    values = processors[limit].image_inputs(image)
    assert values.shape == (len(published), 3, TILE_PX, TILE_PX)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    levels = ((values * std + mean) * 255).permute(0, 2, 3, 1).double().numpy()
    difference = np.abs(levels - published)
    assert difference.max() <= 2.001
    assert difference.mean() < 0.3
    assert (difference > 1.5).mean() < 1e-5
    if len(published) > 1:  # it would be noticed: another order of the tiles, another resampling
        assert np.abs(levels - np.roll(published, 1, axis=0)).mean() > 5
