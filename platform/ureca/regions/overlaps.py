"""How much the masks of an image overlap, computed only where it can matter.

Of 100 masks of a photo 4,950 pairs overlap or don't; some 300 of them are a part and its whole. Masks whose boxes
overlap too little can't be such a pair, which leaves 600 to 1,200 for the runs themselves.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from ureca.regions.rle import Rle


def containments(
    rles: Sequence[Rle], areas: np.ndarray, boxes: Sequence[tuple[float, float, float, float]], *, at_least: float
) -> np.ndarray:
    """float64 (n, n): [i, j] = area(i ∩ j) / area(i) for j < i, and 0 wherever that is below `at_least` for sure.

    `rles` stand largest first and are not empty; `areas` (n,) and `boxes` (x, y, width, height) are theirs. Values
    that are given are exact; some below `at_least` are among them.
    """
    shares = np.zeros((len(rles), len(rles)))
    if len(rles) < 2:
        return shares
    left, top, width, height = np.asarray(boxes).T
    columns = _common_length(left, left + width)
    rows = _common_length(top, top + height)
    # the intersection lies in both boxes, so this is its largest possible area; all are whole numbers, but the product
    # with `at_least` is rounded
    may_matter = np.tril(columns * rows >= at_least * areas[:, np.newaxis] - 1e-6, -1)
    # pycocotools takes counts as text too, and encodes them again in every call
    packed = [{"size": rle["size"], "counts": rle["counts"].encode()} for rle in rles]
    for outer in np.flatnonzero(may_matter.any(axis=0)):
        inner = np.flatnonzero(may_matter[:, outer])
        shares[inner, outer] = coco_mask.iou([packed[i] for i in inner], [packed[outer]], [1])[:, 0]
    return shares


def ious(containment: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """float64 (n, n): intersection over union of the pairs whose containment is given, 0 for the others."""
    common = np.rint(containment * areas[:, np.newaxis])
    return common / (areas[:, np.newaxis] + areas - common)


def _common_length(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """(n, n): how much of interval i lies in interval j."""
    return np.clip(np.minimum(stop[:, np.newaxis], stop) - np.maximum(start[:, np.newaxis], start), 0, None)
