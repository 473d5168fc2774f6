"""Mask tiles: InternVL's grid, and no region lost."""

import numpy as np
import pytest
from PIL import Image

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
def test_tile_grid_of_common_photo_sizes(width: int, height: int, at_6: tuple, at_12: tuple):
    assert tile_grid((height, width), 448, 6) == at_6
    assert tile_grid((height, width), 448, 12) == at_12


def test_tile_grid_tie_prefers_larger_grid_if_half_filled():
    # 1x1, 2x2 and 3x3 are equally near to a square; 3x3 needs the pixels of more than 4.5 tiles
    half = 0.5 * 448**2
    assert tile_grid((int((half * 4) ** 0.5), int((half * 4) ** 0.5)), 448, 12) == (1, 1)
    assert tile_grid((int((half * 4) ** 0.5) + 1, int((half * 4) ** 0.5) + 1), 448, 12) == (2, 2)
    assert tile_grid((int((half * 9) ** 0.5) + 1, int((half * 9) ** 0.5) + 1), 448, 12) == (3, 3)


def test_tile_grid_equals_transformers():
    from ureca.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 3000, (3000, 2))
    # exact ratios included, for which grids tie
    sizes = np.concatenate([sizes, rng.integers(1, 13, (3000, 2)) * rng.integers(20, 250, (3000, 1))])
    for height, width in sizes.tolist():
        for tile_px, max_tiles in ((448, 6), (448, 12), (256, 1), (64, 4)):
            theirs = get_optimal_tiled_canvas((height, width), (tile_px, tile_px), 1, max_tiles)
            assert tile_grid((height, width), tile_px, max_tiles) == tuple(theirs), (height, width)


@pytest.mark.parametrize(("min_tiles", "max_tiles"), [(1, 0), (0, 3), (4, 3)])
def test_tile_grid_invalid_limits_are_refused(min_tiles: int, max_tiles: int):
    with pytest.raises(ConfigError, match=f"tiles from {min_tiles} to {max_tiles}"):
        tile_grid((10, 10), 448, max_tiles, min_tiles)


def all_tiles(mask: np.ndarray, *, tile_px: int, max_tiles: int) -> np.ndarray:
    """Return (T, 1, tile_px, tile_px): the touched tiles, and zeros for the others."""
    tiles, indices = mask_tiles(encode_mask(mask), tile_px=tile_px, max_tiles=max_tiles)
    cols, rows = tile_grid(mask.shape, tile_px, max_tiles)
    every = np.zeros((cols * rows + (cols * rows > 1), *tiles.shape[1:]), tiles.dtype)
    every[indices] = tiles
    return every


def averaging_matrix(length: int, num_cells: int) -> np.ndarray:
    """Return (num_cells, length): fraction of each cell that each position covers."""
    borders = np.arange(num_cells + 1)[:, None] * length / num_cells
    positions = np.arange(length)
    overlap = np.minimum(borders[1:], positions + 1) - np.maximum(borders[:-1], positions)
    return np.clip(overlap, 0, None) / (length / num_cells)


def random_mask(rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(1, 90, 2)
    mask = np.zeros((height, width), dtype=bool)
    top, bottom = np.sort(rng.integers(0, height + 1, 2))
    left, right = np.sort(rng.integers(0, width + 1, 2))
    mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < rng.random()
    return mask


@pytest.mark.parametrize(("tile_px", "max_tiles"), [(16, 6), (16, 12), (32, 1), (7, 4)])
def test_mask_tiles_equal_exact_area_averages(tile_px: int, max_tiles: int):
    rng = np.random.default_rng(1)
    for _ in range(150):
        mask = random_mask(rng)
        if not mask.any():
            continue
        height, width = mask.shape
        cols, rows = tile_grid(mask.shape, tile_px, max_tiles)
        tiles = all_tiles(mask, tile_px=tile_px, max_tiles=max_tiles)
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


@pytest.mark.parametrize(("tile_px", "max_tiles"), [(448, 6), (448, 12), (7, 12)])
def test_mask_tiles_returns_exactly_the_touched_tiles(tile_px: int, max_tiles: int):
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(60):
        height, width = (int(value) for value in rng.integers(3, 1400, 2))
        cols, rows = tile_grid((height, width), tile_px, max_tiles)
        mask = np.zeros((height, width), dtype=bool)
        # boxes with edges on tile borders, or on the pixel border next to them
        y0, y1 = np.sort(rng.integers(0, rows + 1, 2)) * height // rows
        x0, x1 = np.sort(rng.integers(0, cols + 1, 2)) * width // cols
        mask[y0 : y1 + rng.integers(1, 3), x0 : x1 + rng.integers(0, 3)] = True
        if not mask.any():
            continue
        y, x = np.nonzero(mask)
        touched = set()
        for row in range(rows):
            for column in range(cols):  # in integers: pixel y is [y * rows, (y + 1) * rows) of height * rows
                in_rows = (y * rows < (row + 1) * height) & ((y + 1) * rows > row * height)
                in_columns = (x * cols < (column + 1) * width) & ((x + 1) * cols > column * width)
                if (in_rows & in_columns).any():
                    touched.add(row * cols + column)
        if cols * rows > 1:
            touched.add(cols * rows)
        tiles, indices = mask_tiles(encode_mask(mask), tile_px=tile_px, max_tiles=max_tiles)
        assert indices.tolist() == sorted(touched)
        assert tiles.any((1, 2, 3)).all()
        seen.add(len(touched) < cols * rows)
    assert seen == {True, False}


@pytest.mark.parametrize(("size", "indices"), [((10, 10), [0]), ((300, 1200), [3])])
def test_mask_tiles_of_empty_mask_is_one_empty_tile(size: tuple[int, int], indices: list[int]):
    tiles, found = mask_tiles(encode_mask(np.zeros(size, dtype=bool)), tile_px=32, max_tiles=3)
    assert (found.tolist(), tiles.shape, tiles.any()) == (indices, (1, 1, 32, 32), False)


def test_thumbnail_edges_stay_in_0_to_1_unlike_bicubic():
    y, x = np.mgrid[:1500, :2250]
    mask = (y - 700) ** 2 + (x - 1100) ** 2 <= 200**2
    thumbnail = all_tiles(mask, tile_px=448, max_tiles=6)[-1, 0]
    assert thumbnail.min() == 0
    assert thumbnail.max() == 1
    soft = (thumbnail > 0.01) & (thumbnail < 0.99)
    assert 150 < soft.sum() < 600  # one line of cells around the disc
    np.testing.assert_allclose(thumbnail.sum() * 1500 * 2250 / 448**2, mask.sum(), rtol=1e-5)
    # the authors' thumbnail: bicubic, then cast to 8 bits, which turns -1 into 255
    bicubic = Image.fromarray(255 * mask.astype(np.float32)).resize((448, 448), Image.Resampling.BICUBIC)
    wrapped = np.asarray(bicubic).astype(np.int64).astype(np.uint8)
    assert (abs(wrapped / 255 - thumbnail) > 0.9).sum() > 300


def test_mask_tiles_of_tile_sized_mask_is_the_mask():
    mask = np.random.default_rng(2).random((32, 32)) < 0.3
    np.testing.assert_array_equal(all_tiles(mask, tile_px=32, max_tiles=1)[0, 0], mask)


def test_mask_tiles_keep_a_10_px_region_of_a_large_photo():
    rng = np.random.default_rng(3)
    for y, x in rng.integers((0, 0), (2990, 3990), (10, 2)):
        mask = np.zeros((3000, 4000), dtype=bool)
        mask[y : y + 10, x : x + 10] = True
        tiles = all_tiles(mask, tile_px=448, max_tiles=6)
        assert tiles.shape == (7, 1, 448, 448)
        # 100 pixels are 100 / (3000 * 4000) of the image, at any scale
        np.testing.assert_allclose(tiles[:-1].sum(), 100 * (896 * 1344) / (3000 * 4000), rtol=1e-4)
        np.testing.assert_allclose(tiles[-1].sum(), 100 * (448 * 448) / (3000 * 4000), rtol=1e-4)
        assert tiles[-1].max() > 0.2
        nearest = mask[(np.arange(448) * 3000 // 448)[:, None], np.arange(448) * 4000 // 448]
        assert nearest.sum() <= 4  # nearest-neighbor sampling would keep at most 4 pixels


def test_mask_tiles_keep_a_one_pixel_line():
    mask = np.zeros((512, 512), dtype=bool)
    mask[100:400, 301] = True
    assert not mask[:, ::2].any()
    tiles = all_tiles(mask, tile_px=256, max_tiles=1)
    assert tiles.shape == (1, 1, 256, 256)
    np.testing.assert_array_equal(tiles[0, 0, 50:200, 150], 0.5)
    assert tiles.sum() == 150 * 0.5
