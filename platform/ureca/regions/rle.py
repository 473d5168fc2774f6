"""Masks as COCO run-length encodings, validated on input and never decoded for comparisons.

    Rle     {"size": [height, width], "counts": str}, COCO's compressed form; runs go down the columns,
            background first
    mask    bool (H, W)
    bbox    (x, y, width, height) in pixels; box_xyxy is (left, top, right, bottom), right and bottom excluded

pycocotools does not validate: it reads past the end of a truncated counts string, and adjacent empty runs end its
intersection early. Every external RLE therefore goes through `check_rle` once, which parses the runs; later code may
rely on them. Source of the string format: cocodataset/cocoapi common/maskApi.c, rleToString and rleFrString.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ureca.errors import EmptyMaskError, MaskError, MaskSizeError

Rle = dict[str, Any]
BoolMask = np.ndarray
Size = tuple[int, int]

_SYMBOLS = bytes(range(48, 48 + 64))
"""Characters of COCO's string."""

_MAX_SYMBOLS = 8
"""Symbols per number; 40 bits exceed any image's pixel count."""

_DECODE_BATCH = 8
"""Strings decoded together; larger batches allocate new memory pages in every operation, which costs 50% more."""

_SIGN_OF_LENGTH = np.array([0, *[16 << (5 * digit) for digit in range(_MAX_SYMBOLS)]], dtype=np.int64)
"""Sign bit of a number, by its number of symbols."""


def encode_mask(mask: BoolMask) -> Rle:
    """Encode a bool (H, W) mask; it may be empty."""
    if mask.ndim != 2:
        raise MaskError(f"a mask of shape {mask.shape}: give one mask of shape (height, width)")
    return _as_text(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8, copy=False))))


def decode_rle(rle: Rle) -> BoolMask:
    """Decode to bool (H, W)."""
    return coco_mask.decode(rle).astype(bool)


def rle_runs(rle: Rle) -> np.ndarray:
    """int64 (n,): lengths of the runs, background first, down the columns."""
    counts = rle["counts"]
    return _read_runs([counts if isinstance(counts, bytes) else counts.encode()], ["a mask"])[0]


def rle_area(rle: Rle) -> int:
    """Number of pixels in the mask."""
    return int(rle_areas([rle])[0])


def rle_areas(rles: Sequence[Rle]) -> np.ndarray:
    """int64 (n,): `rle_area` of each."""
    # pycocotools stores the number of masks in one byte first, and numpy 2 raises when it does not fit.
    some = [coco_mask.area(list(rles[start : start + 255])) for start in range(0, len(rles), 255)]
    return np.concatenate(some).astype(np.int64) if some else np.zeros(0, dtype=np.int64)


def rle_bbox(rle: Rle) -> tuple[float, float, float, float]:
    """(x, y, width, height) of the smallest box around the mask, in pixels."""
    return rle_bboxes([rle])[0]


def rle_bboxes(rles: Sequence[Rle]) -> list[tuple[float, float, float, float]]:
    """`rle_bbox` of each."""
    boxes = coco_mask.toBbox(list(rles)).tolist() if len(rles) else []
    return [(x, y, width, height) for x, y, width, height in boxes]


def iou_matrix(rles: Sequence[Rle]) -> np.ndarray:
    """float64 (n, n): [i, j] = area(i ∩ j) / area(i ∪ j). All masks must have one size."""
    if not rles:
        return np.zeros((0, 0))
    return np.asarray(coco_mask.iou(list(rles), list(rles), [0] * len(rles)), dtype=np.float64)


def check_rle(rle: Mapping[str, Any], size: Size, *, where: str) -> Rle:
    """Check an external RLE against its image and return it compressed, with `counts` as text.

    `counts` may be COCO's compressed string (str or bytes) or the uncompressed list of runs. `size` is the image's
    (height, width); `where` starts the error message, e.g. "sa_1.json: region '7'".

    Raises:
        MaskSizeError: the RLE was made for another image size.
        EmptyMaskError: no pixel is set.
        MaskError: it is not an RLE, or its runs do not fill the image.
    """
    return check_rles([rle], size, where=[where])[0]


def check_rles(rles: Sequence[Mapping[str, Any]], size: Size, *, where: Sequence[str]) -> list[Rle]:
    """Apply `check_rle` to all masks of an image at once, in about half the time; `where` names each.

    Raises:
        MaskError: as `check_rle`, for the first invalid mask.
    """
    counts = [_counts_of(rle, size, name) for rle, name in zip(rles, where, strict=True)]
    all_runs = _read_runs(counts, where)
    if not all_runs:
        return []
    height, width = size
    starts = np.cumsum([0, *[len(runs) for runs in all_runs[:-1]]])
    together = np.concatenate(all_runs)
    num_pixels = np.add.reduceat(together, starts)
    shortest = np.minimum.reduceat(together, starts)
    longest = np.maximum.reduceat(together, starts)  # sums of longer runs could overflow 64 bits
    checked: list[Rle] = []
    for index, (name, runs, text) in enumerate(zip(where, all_runs, counts, strict=True)):
        if num_pixels[index] != height * width or longest[index] > height * width:
            raise MaskError(
                f"{name} has an RLE whose runs sum to {sum(runs.tolist())}, its image has {height * width} pixels "
                f"({height} x {width}). The counts are cut off or belong to another mask; encode it again."
            )
        has_empty_run = shortest[index] == 0
        if len(runs) == 1 or (has_empty_run and not runs[1::2].any()):
            raise EmptyMaskError(f"{name} is an empty mask: no pixel is set. Remove it or encode it again.")
        if has_empty_run and not runs[1:].all():  # between two others: valid, but see the module docstring
            checked.append(_from_runs(_merge_empty_runs(runs).tolist(), size))
        elif isinstance(text, bytes):
            checked.append({"size": [height, width], "counts": text.decode("ascii")})
        else:
            checked.append(_from_runs(text, size))
    return checked


def box_to_rle(box_xyxy: Sequence[float], size: Size) -> Rle:
    """Return the pixels that a box touches as an RLE; the box is clipped to the image. `size` is (height, width).

    Raises:
        EmptyMaskError: no part of the box lies in the image.
        MaskError: the box is not four finite numbers.
    """
    values = _finite_numbers(box_xyxy)
    if values is None or len(values) != 4:
        raise MaskError(f"box {_shorten(box_xyxy)}: give four numbers, left, top, right, bottom, in pixels.")
    height, width = size
    left, top = max(math.floor(values[0]), 0), max(math.floor(values[1]), 0)
    right, bottom = min(math.ceil(values[2]), width), min(math.ceil(values[3]), height)
    if right <= left or bottom <= top:
        raise EmptyMaskError(
            f"box {list(values)} covers no pixel of its image of {list(size)} (height, width). "
            "Give left, top, right, bottom in pixels of the image, with left < right and top < bottom."
        )
    rows, columns = bottom - top, right - left
    if rows == height:
        runs = [left * height, rows * columns]
    else:
        runs = [left * height + top, *[rows, height - rows] * (columns - 1), rows]
    rest = height * width - sum(runs)
    return _from_runs([*runs, rest] if rest else runs, size)


def polygon_to_rle(polygon: Sequence[Any], size: Size) -> Rle:
    """Fill a polygon, or several, and return the mask.

    A polygon is [x1, y1, x2, y2, …] or [[x1, y1], …]; several are a list of flat lists (COCO). Coordinates are pixels
    of an image of `size` (height, width); what lies outside it is cut off. Several polygons are united.

    Raises:
        EmptyMaskError: no pixel inside.
        MaskError: malformed polygons, or points far outside the image.
    """
    height, width = size
    parts: Sequence[Any] = [polygon]
    if len(polygon) and isinstance(polygon[0], (list, tuple, np.ndarray)):
        parts = [np.asarray(polygon).ravel()] if _are_points(polygon) else polygon
    flat_parts = []
    for part in parts:
        values = _finite_numbers(part)
        if values is None or len(values) < 6 or len(values) % 2:
            raise MaskError(f"polygon {_shorten(polygon)}: give at least three points as [x1, y1, x2, y2, x3, y3, …].")
        xs, ys = values[0::2], values[1::2]
        # pycocotools allocates by edge length: a point a billion pixels away would take the memory
        if min(xs) < -width or max(xs) > 2 * width or min(ys) < -height or max(ys) > 2 * height:
            raise MaskError(
                f"polygon {_shorten(polygon)} reaches far outside its image of {list(size)} (height, width). "
                "Give pixel coordinates of the image itself."
            )
        flat_parts.append(list(values))
    rle = _as_text(coco_mask.merge(coco_mask.frPyObjects(flat_parts, height, width)))
    if rle_area(rle) == 0:
        raise EmptyMaskError(
            f"polygon {_shorten(polygon)} covers no pixel of its image of {list(size)} (height, width)."
        )
    return rle


def _counts_of(rle: Mapping[str, Any], size: Size, where: str) -> bytes | list[int]:
    """Return the counts of an RLE of the image's size: COCO's string, or the list of runs."""
    try:
        rle_size = [int(value) for value in rle["size"]]
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskError(
            f"{where} is not an RLE: {_shorten(rle)}. "
            'Give {"size": [height, width], "counts": …}, COCO\'s form; polygons must be converted first.'
        ) from error
    if rle_size != list(size):
        raise MaskSizeError(
            f"{where} has an RLE of size {_shorten(rle_size)}, its image is {list(size)} (height, width). "
            "Encode the mask at the image's stored size; EXIF rotation of only one of them is a common cause."
        )
    if isinstance(counts, (list, tuple)):
        if not counts or not all(isinstance(run, int) and 0 <= run < 1 << 40 for run in counts):
            raise MaskError(f"{where} has an RLE whose runs are not whole numbers >= 0. Encode the mask again.")
        return list(counts)
    if isinstance(counts, str):
        counts = counts.encode("utf-8", errors="replace")
    if not isinstance(counts, bytes):
        raise MaskError(
            f"{where} has an RLE whose counts are {type(counts).__name__}. Give COCO's string or a list of runs."
        )
    return counts


def _read_runs(all_counts: Sequence[bytes | list[int]], where: Sequence[str]) -> list[np.ndarray]:
    """Return the run lengths of each mask, int64 (n,), all >= 0."""
    texts = [counts for counts in all_counts if isinstance(counts, bytes)]
    groups = (texts[start : start + _DECODE_BATCH] for start in range(0, len(texts), _DECODE_BATCH))
    runs_of_texts = (runs for group in groups for runs in _read_texts(group))
    runs = []
    for counts, name in zip(all_counts, where, strict=True):
        found = next(runs_of_texts) if isinstance(counts, bytes) else np.asarray(counts, dtype=np.int64)
        if found is None or found.min() < 0:
            text = _shorten(counts.decode(errors="replace") if isinstance(counts, bytes) else counts)
            raise MaskError(
                f"{name} has an RLE whose counts string is damaged or cut off: {text}. Encode the mask again."
            )
        runs.append(found)
    return runs


def _read_texts(texts: Sequence[bytes]) -> list[np.ndarray | None]:
    """Return the runs of each COCO string, int64; None for a malformed one.

    A number is a group of 6-bit symbols, lowest first: 5 bits of value, bit 32 means that more follow; the last
    symbol's bit 16 is the sign. From the fourth number on it is the difference to the number two before. Strings are
    read in batches: for a single one, numpy's call overhead exceeds the work.
    """
    sound = [
        index
        for index, text in enumerate(texts)
        if text and not (text[-1] - 48) & 32 and not text.translate(None, _SYMBOLS)
    ]
    if not sound:
        return [None] * len(texts)
    symbols = np.frombuffer(b"".join(texts[index] for index in sound), dtype=np.uint8) - np.uint8(48)
    last = np.flatnonzero(symbols & 32 == 0)
    lengths = np.diff(last, prepend=-1)
    first = last - lengths + 1
    values = symbols & 31
    numbers = values[first].astype(np.int64)
    longer = np.arange(len(numbers))
    for digit in range(1, min(int(lengths.max()), _MAX_SYMBOLS)):
        longer = longer[lengths[longer] > digit]
        numbers[longer] |= values[first[longer] + digit].astype(np.int64) << (5 * digit)
    sign = _SIGN_OF_LENGTH[np.minimum(lengths, _MAX_SYMBOLS)]
    numbers = (numbers ^ sign) - sign

    stops = np.searchsorted(last, np.cumsum([len(texts[index]) for index in sound])).tolist()
    too_long = set(np.searchsorted(stops, np.flatnonzero(lengths > _MAX_SYMBOLS), side="right").tolist())
    found: list[np.ndarray | None] = [None] * len(texts)
    for position, (index, start, stop) in enumerate(zip(sound, [0, *stops[:-1]], stops, strict=True)):
        runs = numbers[start:stop]
        np.cumsum(runs[1::2], out=runs[1::2])
        np.cumsum(runs[2::2], out=runs[2::2])
        if position not in too_long:
            found[index] = runs
    return found


def _merge_empty_runs(runs: np.ndarray) -> np.ndarray:
    """Join the runs on both sides of an empty run; only the first run (background) may stay empty."""
    is_set = np.arange(len(runs)) % 2 == 1
    kept = np.flatnonzero(runs > 0)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(is_set[kept])) + 1))
    merged = np.add.reduceat(runs[kept], starts)
    return np.concatenate(([0], merged)) if is_set[kept[0]] else merged


def _from_runs(runs: list[int], size: Size) -> Rle:
    return _as_text(coco_mask.frPyObjects({"size": list(size), "counts": runs}, *size))


def _as_text(rle: Mapping[str, Any]) -> Rle:
    counts = rle["counts"]
    return {
        "size": [int(value) for value in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _are_points(parts: Sequence[Any]) -> bool:
    return all(isinstance(part, (list, tuple, np.ndarray)) and len(part) == 2 for part in parts)


def _finite_numbers(values: Any) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
