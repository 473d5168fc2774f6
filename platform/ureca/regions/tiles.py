"""Cut a mask into the tiles its image is cut into.

The grid depends on the image's shape alone: the complete image is resized to cols x rows tiles without keeping its
aspect ratio, and cut row by row; with more than one tile a thumbnail of the complete image comes last. A mask's tiles
correspond one to one to its image's.

Mask tiles are area averages, in the grid and in the thumbnail: each value is the fraction of its cell that the mask
covers. Nearest-neighbor sampling, which keeps tiles binary, loses thin and small regions of large photos; an average
never does, and its sum is the region's area at any scale. Source: InternVL's dynamic_preprocess
(internvl/train/dataset.py) for the grid; URECA (arXiv 2504.05305) section 4 for the mask.
"""

import functools

import numpy as np

from ureca.errors import ConfigError
from ureca.regions.rle import Rle, Size, rle_bbox, rle_runs


def tile_grid(size: Size, tile_px: int, max_tiles: int, min_tiles: int = 1) -> tuple[int, int]:
    """Return (cols, rows) for an image of `size` (height, width).

    The grid is the one whose aspect ratio is nearest to the image's. Of two equally near grids, the larger wins if the
    image has more than half of its pixels.

    Raises:
        ConfigError: max_tiles < min_tiles, or one of them < 1.
    """
    height, width = size
    ratio = width / height
    best, smallest_difference = (1, 1), float("inf")
    for cols, rows in _grids(min_tiles, max_tiles):
        difference = abs(ratio - cols / rows)
        is_tie_and_filled = difference == smallest_difference and height * width > 0.5 * tile_px**2 * cols * rows
        if difference < smallest_difference or is_tie_and_filled:
            best, smallest_difference = (cols, rows), difference
    return best


def with_thumbnail(tiles: int) -> int:
    """Return the number of an image's tiles, the thumbnail included, which only several tiles have."""
    return tiles + (tiles > 1)


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Return all (cols, rows) of min_tiles to max_tiles tiles, fewest tiles first, narrow before wide."""
    if not 1 <= min_tiles <= max_tiles:
        raise ConfigError(f"tiles from {min_tiles} to {max_tiles}: give 1 <= min_tiles <= max_tiles")
    grids = [
        (cols, rows)
        for cols in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // cols + 1)
        if cols * rows >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def mask_tiles(rle: Rle, *, tile_px: int, max_tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles that a mask touches, and their indices.

    Only the mask's box is resized, and tiles that it leaves empty are not created: a typical region touches one or two
    of a dozen.

    Returns:
        float32 (K, 1, tile_px, tile_px) in 0..1, the fraction of each cell that the mask covers, and the tiles'
        indices, int64 (K,): grid tiles row by row, then the thumbnail if there are several. The last tile, thumbnail
        or only tile, is always included.
    """
    height, width = rle["size"]
    cols, rows = tile_grid((height, width), tile_px, max_tiles)
    x, y, box_width, box_height = (int(value) for value in rle_bbox(rle))
    if not box_width:  # no pixel at all
        return np.zeros((1, 1, tile_px, tile_px), dtype=np.float32), np.array([cols * rows if cols * rows > 1 else 0])
    first_row, by_rows = _average_down_columns(rle, (x, y, box_width, box_height), rows * tile_px)
    first_col, cells = _average_last_axis(np.ascontiguousarray(by_rows.T), x, width, cols * tile_px)

    num_tiles = cols * rows
    touched = []
    for tile in range(num_tiles):
        top, left = tile // cols * tile_px, tile % cols * tile_px
        y0, y1 = np.clip([first_row - top, first_row + cells.shape[0] - top], 0, tile_px)
        x0, x1 = np.clip([first_col - left, first_col + cells.shape[1] - left], 0, tile_px)
        part = cells[y0 + top - first_row : y1 + top - first_row, x0 + left - first_col : x1 + left - first_col]
        if part.any() or num_tiles == 1:
            touched.append((tile, y0, x0, part))
    if num_tiles > 1:
        # the grid's cells divide the thumbnail's evenly, so averaging again is exact
        x0, cells = _average_last_axis(cells, first_col, cols * tile_px, tile_px)
        y0, cells = _average_last_axis(np.ascontiguousarray(cells.T), first_row, rows * tile_px, tile_px)
        touched.append((num_tiles, y0, x0, cells.T))
    tiles = np.zeros((len(touched), 1, tile_px, tile_px), dtype=np.float32)
    for tile, (_, y0, x0, part) in zip(tiles[:, 0], touched, strict=True):
        tile[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
    return tiles, np.array([index for index, *_ in touched])


def _average_down_columns(rle: Rle, box: tuple[int, int, int, int], num_cells: int) -> tuple[int, np.ndarray]:
    """Average the columns of a mask's box over the cells that the box touches.

    `box` is (x, y, w, h); `num_cells` cells divide the image's height. Works on the runs: a large photo's mask has
    about a thousand of them, but millions of pixels. Returns the first touched cell and float32 (w, k).
    """
    height = rle["size"][0]
    x, y, box_width, box_height = box
    first = y * num_cells // height
    stop = -((y + box_height) * num_cells // -height)
    runs = rle_runs(rle)
    # Pixels so far, and those inside the region, at the end of each run; both grow linearly in between. Units are
    # fractions of a pixel in which cell borders are integers: a border off by a rounding error would let a region touch
    # the neighboring tile.
    inside = np.where(np.arange(len(runs)) % 2, runs, 0)
    kept = runs > 0
    ends = np.concatenate([[0], np.cumsum(runs)[kept]]) * num_cells
    covered = np.concatenate([[0], np.cumsum(inside)[kept]]) * num_cells
    columns = np.arange(x, x + box_width)[:, None] * (height * num_cells)
    at_borders = np.interp(columns + np.arange(first, stop + 1) * height, ends, covered)
    return first, (np.diff(at_borders, axis=1) / height).astype(np.float32)


def _average_last_axis(values: np.ndarray, start: int, length: int, num_cells: int) -> tuple[int, np.ndarray]:
    """Average `values` (n, m) over the cells its last axis lies in.

    That axis holds the positions start, start + 1, … of an axis of `length`, which is divided into `num_cells` equal
    cells; positions outside `values` count as 0. Returns the first touched cell and the averages of the k touched ones,
    float32 (n, k).
    """
    num_values = values.shape[1]
    first = start * num_cells // length
    stop = -((start + num_values) * num_cells // -length)
    if num_cells == length:
        return first, values
    # A cell's sum is the difference of the running sum at its borders; a border inside a position splits that position.
    # Integers, because a border off by a rounding error would let a region touch the neighboring tile.
    positions, parts = np.divmod(np.arange(first, stop + 1) * length, num_cells)
    behind_shares = ((num_cells - parts) / num_cells).astype(np.float32)
    behind_shares[positions < start] = 1
    behind_shares[positions >= start + num_values] = 0
    indices = np.clip(positions - start, 0, num_values - 1)
    running = np.cumsum(values, axis=1, dtype=np.float64)
    behind = behind_shares * np.take(values, indices, axis=1)
    gained = np.diff(np.take(running, indices, axis=1), axis=1).astype(np.float32)
    averages = (gained - np.diff(behind, axis=1)) * np.float32(num_cells / length)
    return first, np.clip(averages, 0, 1)
