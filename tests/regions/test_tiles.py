"""Mask tiles: InternVL's grid, and no region lost on the way."""

import numpy as np
import pytest

from ureca.errors import ConfigError
from ureca.regions.rle import encode_mask
from ureca.regions.tiles import mask_tiles, tile_grid


@pytest.mark.parametrize(
    ("width", "height", "at_6", "at_12"),
    [
        (2250, 1500, (3, 2), (3, 2)),
        (2000, 1500, (3, 2), (4, 3)),
        (640, 480, (3, 2), (4, 3)),
        (2667, 1500, (2, 1), (4, 2)),
        (1500, 1500, (2, 2), (3, 3)),
        (640, 640, (2, 2), (2, 2)),
    ],
)
def test_grid_of_usual_photos(width: int, height: int, at_6: tuple, at_12: tuple):
    assert tile_grid((height, width), 448, 6) == at_6
    assert tile_grid((height, width), 448, 12) == at_12


def test_tie_goes_to_the_larger_grid_only_if_the_image_half_fills_it():
    # 1x1, 2x2 and 3x3 are equally near to a square; 3x3 wants more than 4.5 tiles' worth of pixels
    half = 0.5 * 448**2
    assert tile_grid((int((half * 4) ** 0.5), int((half * 4) ** 0.5)), 448, 12) == (1, 1)
    assert tile_grid((int((half * 4) ** 0.5) + 1, int((half * 4) ** 0.5) + 1), 448, 12) == (2, 2)
    assert tile_grid((int((half * 9) ** 0.5) + 1, int((half * 9) ** 0.5) + 1), 448, 12) == (3, 3)


def test_grid_equals_the_image_processor_of_transformers():
    from ureca.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 3000, (3000, 2))
    # exact ratios too, where grids tie
    sizes = np.concatenate([sizes, rng.integers(1, 13, (3000, 2)) * rng.integers(20, 250, (3000, 1))])
    for height, width in sizes.tolist():
        for tile_px, max_tiles in ((448, 6), (448, 12), (256, 1), (64, 4)):
            theirs = get_optimal_tiled_canvas((height, width), (tile_px, tile_px), 1, max_tiles)
            assert tile_grid((height, width), tile_px, max_tiles) == tuple(theirs), (height, width)


@pytest.mark.parametrize(("min_tiles", "max_tiles"), [(1, 0), (0, 3), (4, 3)])
def test_impossible_tile_limits_are_refused(min_tiles: int, max_tiles: int):
    with pytest.raises(ConfigError, match=f"tiles from {min_tiles} to {max_tiles}"):
        tile_grid((10, 10), 448, max_tiles, min_tiles)


def averaging_matrix(length: int, num_cells: int) -> np.ndarray:
    """(num_cells, length): the share of each cell that each place takes up."""
    borders = np.arange(num_cells + 1)[:, None] * length / num_cells
    places = np.arange(length)
    overlap = np.minimum(borders[1:], places + 1) - np.maximum(borders[:-1], places)
    return np.clip(overlap, 0, None) / (length / num_cells)


def random_mask(rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(1, 90, 2)
    mask = np.zeros((height, width), dtype=bool)
    top, bottom = np.sort(rng.integers(0, height + 1, 2))
    left, right = np.sort(rng.integers(0, width + 1, 2))
    mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < rng.random()
    return mask


@pytest.mark.parametrize(("tile_px", "max_tiles"), [(16, 6), (16, 12), (32, 1), (7, 4)])
def test_tiles_equal_exact_area_averages_of_the_whole_mask(tile_px: int, max_tiles: int):
    rng = np.random.default_rng(1)
    for _ in range(150):
        mask = random_mask(rng)
        if not mask.any():
            continue
        height, width = mask.shape
        cols, rows = tile_grid(mask.shape, tile_px, max_tiles)
        tiles = mask_tiles(encode_mask(mask), tile_px=tile_px, max_tiles=max_tiles)
        assert tiles.dtype == np.float32
        assert tiles.shape == (cols * rows + (cols * rows > 1), 1, tile_px, tile_px)
        canvas = averaging_matrix(height, rows * tile_px) @ mask @ averaging_matrix(width, cols * tile_px).T
        for index, tile in enumerate(tiles[: cols * rows, 0]):
            row, col = divmod(index, cols)
            part = canvas[row * tile_px : (row + 1) * tile_px, col * tile_px : (col + 1) * tile_px]
            np.testing.assert_allclose(tile, part, atol=2e-6)
        if len(tiles) > 1:
            thumbnail = averaging_matrix(height, tile_px) @ mask @ averaging_matrix(width, tile_px).T
            np.testing.assert_allclose(tiles[-1, 0], thumbnail, atol=2e-6)


def test_mask_of_the_tile_size_stays_as_it_is():
    mask = np.random.default_rng(2).random((32, 32)) < 0.3
    np.testing.assert_array_equal(mask_tiles(encode_mask(mask), tile_px=32, max_tiles=1)[0, 0], mask)


def test_region_of_10_by_10_pixels_in_a_large_photo_reaches_grid_and_thumbnail():
    rng = np.random.default_rng(3)
    for y, x in rng.integers((0, 0), (2990, 3990), (10, 2)):
        mask = np.zeros((3000, 4000), dtype=bool)
        mask[y : y + 10, x : x + 10] = True
        tiles = mask_tiles(encode_mask(mask), tile_px=448, max_tiles=6)
        assert tiles.shape == (7, 1, 448, 448)
        # 100 pixels are 100 / (3000 * 4000) of the image, in every rendering of it
        np.testing.assert_allclose(tiles[:-1].sum(), 100 * (896 * 1344) / (3000 * 4000), rtol=1e-4)
        np.testing.assert_allclose(tiles[-1].sum(), 100 * (448 * 448) / (3000 * 4000), rtol=1e-4)
        assert tiles[-1].max() > 0.2
        nearest = mask[(np.arange(448) * 3000 // 448)[:, None], np.arange(448) * 4000 // 448]
        assert nearest.sum() <= 4  # what nearest-neighbor sampling would leave of it


def test_line_of_one_pixel_survives_where_nearest_neighbor_sampling_loses_it():
    mask = np.zeros((512, 512), dtype=bool)
    mask[100:400, 301] = True
    assert not mask[:, ::2].any()
    tiles = mask_tiles(encode_mask(mask), tile_px=256, max_tiles=1)
    assert tiles.shape == (1, 1, 256, 256)
    np.testing.assert_array_equal(tiles[0, 0, 50:200, 150], 0.5)
    assert tiles.sum() == 150 * 0.5
