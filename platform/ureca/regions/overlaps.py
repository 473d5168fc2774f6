"""Overlap of an image's masks, computed only for pairs that can matter.

100 masks have 4,950 pairs; in a photo about 300 of them are a part and its whole. Masks whose boxes overlap too little
cannot be such a pair, which leaves 600 to 1,200 pairs for the exact computation on the runs.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from ureca.regions.rle import Rle


def containments(
    rles: Sequence[Rle], areas: np.ndarray, boxes: Sequence[tuple[float, float, float, float]], *, at_least: float
) -> np.ndarray:
    """Return float64 (n, n): [i, j] = area(i ∩ j) / area(i) for j < i.

    Pairs that are certainly below `at_least` are 0. Nonzero values are exact; some of them may be below `at_least`.
    `rles` are sorted largest first and not empty; `areas` (n,) and `boxes` (x, y, width, height) belong to them.
    """
    shares = np.zeros((len(rles), len(rles)))
    if len(rles) < 2:
        return shares
    left, top, width, height = np.asarray(boxes).T
    columns = _common_length(left, left + width)
    rows = _common_length(top, top + height)
    # The intersection lies in both boxes, so this is its maximum area. All are integers, but the product with
    # `at_least` is rounded.
    may_matter = np.tril(columns * rows >= at_least * areas[:, np.newaxis] - 1e-6, -1)
    # pycocotools takes counts as text too, and encodes them again in every call
    packed = [{"size": rle["size"], "counts": rle["counts"].encode()} for rle in rles]
    for outer in np.flatnonzero(may_matter.any(axis=0)):
        inner = np.flatnonzero(may_matter[:, outer])
        shares[inner, outer] = coco_mask.iou([packed[i] for i in inner], [packed[outer]], [1])[:, 0]
    return shares


def ious(containment: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return float64 (n, n): intersection over union of the pairs whose containment is given, 0 for the others."""
    common = np.rint(containment * areas[:, np.newaxis])
    return common / (areas[:, np.newaxis] + areas - common)


def _common_length(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Return (n, n): length of the overlap of interval i with interval j."""
    return np.clip(np.minimum(stop[:, np.newaxis], stop) - np.maximum(start[:, np.newaxis], start), 0, None)
