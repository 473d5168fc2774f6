"""Speed of mask trees at SA-1B's size: 100 masks of 1500x2250, compared with two simpler methods.

    python benchmarks/mask_trees.py

Cases: `compact` has drawn ellipses, boxes and rounded boxes on three levels. `real` has outlines of photos' masks,
scaled up: those of the package, or of the folder URECA_TEST_DATA with coco/ and clean/ in SA-1B's format. Inputs are
COCO's compressed strings, as in SA-1B's JSON; the time includes decoding and checking them. The simpler methods compute
all overlaps from dense numpy masks, or with one pycocotools call per pair; the trees must be equal. Times are CPU
seconds of one thread, so they do not depend on other load. Prints a table and, as the last line, one JSON; writes
runs/benchmarks/mask_trees.json.
"""

import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ureca.corpus.read import photos_directory
from ureca.errors import InputError
from ureca.hardware import capture_context
from ureca.regions.rle import Rle, check_rle, decode_rle, encode_mask
from ureca.regions.tree import Mask, MaskTree, TreeConfig, build_mask_tree
from ureca.storage.files import read_json, write_json

SIZE = (1500, 2250)
NUM_MASKS = 100
REPEATS = 3
"""Runs per image; the fastest counts."""
RESULT = Path("runs/benchmarks/mask_trees.json")

Overlaps = Callable[..., np.ndarray]


def measure(images_per_case: int = 16, dense_images_per_case: int = 1) -> dict[str, Any]:
    """Measure both cases; rates and speedups at the top level are those of the slower case."""
    cases = {
        "compact": _measure_case(compact_images(images_per_case), dense_images_per_case),
        "real": _measure_case(real_images(images_per_case), dense_images_per_case),
    }
    return {
        "masks_per_image": NUM_MASKS,
        "size": list(SIZE),
        "images_per_second_per_core": min(case["images_per_second_per_core"] for case in cases.values()),
        "speedup_over_dense": min(case["speedup_over_dense"] for case in cases.values()),
        "speedup_over_pairwise": min(case["speedup_over_pairwise"] for case in cases.values()),
        "cases": cases,
    }


def compact_images(num_images: int) -> Iterator[list[Mask]]:
    """Yield images of masks with smooth edges: a quarter at random positions, the others inside an earlier one."""
    for seed in range(num_images):
        rng = np.random.default_rng(seed)
        centers: list[tuple[float, float, float, float]] = []
        masks: list[Mask] = []
        while len(masks) < NUM_MASKS:
            y, x = rng.uniform(0, SIZE)
            half_height, half_width = rng.uniform(60, 450, 2)
            if centers and rng.random() < 0.75:
                outer_y, outer_x, outer_height, outer_width = centers[rng.integers(len(centers))]
                y = outer_y + rng.uniform(-0.4, 0.4) * outer_height
                x = outer_x + rng.uniform(-0.4, 0.4) * outer_width
                half_height, half_width = rng.uniform(0.2, 0.5, 2) * (outer_height, outer_width)
            if min(half_height, half_width) < 8 or not (0 <= y < SIZE[0] and 0 <= x < SIZE[1]):
                continue
            centers.append((y, x, half_height, half_width))
            # 2: ellipse, 4: rounded box, 40: box
            rle = _superellipse(y, x, half_height, half_width, power=rng.choice([2, 4, 40]))
            masks.append(Mask(str(len(masks)), rle))
        yield masks


def real_images(num_images: int) -> Iterator[list[Mask]]:
    """Yield images of real outlines, most masks first; images with too few repeat theirs, mirrored."""
    given = os.environ.get("URECA_TEST_DATA")
    folders = [Path(given, "coco"), Path(given, "clean")] if given else [photos_directory()]
    files = [path for folder in folders for path in sorted(folder.glob("*.json")) if path.with_suffix(".jpg").exists()]
    if not files:
        raise InputError(f"URECA_TEST_DATA={given}: no photos in its coco/ and clean/. Unset it, or name the folder.")
    photos = [[annotation["segmentation"] for annotation in read_json(path)["annotations"]] for path in files]
    for segmentations in sorted(photos, key=len, reverse=True)[:num_images]:
        masks: list[Mask] = []
        for number in range(NUM_MASKS):
            round_, index = divmod(number, len(segmentations))
            dense = decode_rle(segmentations[index])[:, :: -1 if round_ % 2 else 1]
            height, width = SIZE if dense.shape[0] < dense.shape[1] else SIZE[::-1]
            # transposed, because runs go down the columns, so masks are column-major in memory
            transposed = Image.fromarray(np.ascontiguousarray(dense.T).view(np.uint8) * 255)
            scaled = np.asarray(transposed.resize((height, width), Image.Resampling.BILINEAR)) >= 128
            masks.append(Mask(str(number), encode_mask(scaled.T)))
        yield masks


def _superellipse(y: float, x: float, half_height: float, half_width: float, *, power: float) -> Rle:
    """Draw the pixels around (y, x) with |dy / half_height|^power + |dx / half_width|^power <= 1, column by column."""
    height, width = SIZE
    columns = np.arange(max(int(x - half_width) + 1, 0), min(int(x + half_width) + 1, width))
    reach = half_height * (1 - np.minimum(np.abs((columns - x) / half_width) ** power, 1)) ** (1 / power)
    tops = np.clip(np.floor(y - reach), 0, height - 1).astype(int)
    bottoms = np.clip(np.floor(y + reach) + 1, 1, height).astype(int)
    borders = np.column_stack((columns * height + tops, columns * height + bottoms)).ravel()
    runs = np.diff(borders, prepend=0, append=height * width).tolist()
    return check_rle({"size": [height, width], "counts": runs}, SIZE, where="drawn")


def _dense(rles: Sequence[Rle], areas: np.ndarray, *_: Any, **__: Any) -> np.ndarray:
    """Compute `ureca.regions.overlaps.containments` for every pair from decoded masks."""
    masks = [decode_rle(rle) for rle in rles]
    shares = np.zeros((len(rles), len(rles)))
    for i, inner in enumerate(masks):
        for j, outer in enumerate(masks[:i]):
            shares[i, j] = np.count_nonzero(inner & outer) / areas[i]
    return shares


def _pairwise(rles: Sequence[Rle], *_: Any, **__: Any) -> np.ndarray:
    """Compute the same with one pycocotools call per pair."""
    shares = np.zeros((len(rles), len(rles)))
    for i in range(len(rles)):
        for j in range(i):
            shares[i, j] = coco_mask.iou([rles[i]], [rles[j]], [1])[0, 0]
    return shares


def _build(masks: Sequence[Mask], config: TreeConfig, overlaps: Overlaps | None = None) -> tuple[MaskTree, float]:
    """Build the tree; return it with its CPU seconds. `overlaps` replaces the computation of overlaps."""
    height, width = masks[0].segmentation["size"]
    gc.collect()
    if overlaps is None:
        started = time.thread_time()
        tree = build_mask_tree(masks, (height, width), config)
        return tree, time.thread_time() - started
    with patch("ureca.regions.tree.containments", overlaps):
        return _build(masks, config)


def _measure_case(images: Iterator[list[Mask]], num_dense: int) -> dict[str, Any]:
    seconds: list[float] = []
    paper_seconds: list[float] = []
    pairwise_seconds: list[float] = []
    dense_seconds: list[float] = []
    num_runs = depth = 0
    default, paper = TreeConfig.preset("default"), TreeConfig.preset("paper")
    for masks in images:
        tree = _build(masks, default)[0]  # warm-up
        seconds.append(min(_build(masks, default)[1] for _ in range(REPEATS)))
        paper_seconds.append(min(_build(masks, paper)[1] for _ in range(REPEATS)))
        simpler_methods = [(_pairwise, pairwise_seconds)]
        if len(dense_seconds) < num_dense:
            simpler_methods.append((_dense, dense_seconds))
        for overlaps, method_seconds in simpler_methods:
            method_tree, elapsed = _build(masks, default, overlaps)
            assert method_tree == tree, f"{overlaps.__name__} gives another tree"
            method_seconds.append(elapsed)
        num_runs += sum(_num_runs(mask.segmentation) for mask in masks)
        depth = max(depth, *(region.depth for region in tree.regions))
    return {
        "images": len(seconds),
        "runs_per_image": round(num_runs / len(seconds)),
        "deepest": depth,
        "images_per_second_per_core": round(len(seconds) / sum(seconds), 1),
        "milliseconds": _summary(seconds),
        "paper_preset_milliseconds": _summary(paper_seconds),
        "pairwise_milliseconds": _summary(pairwise_seconds),
        "dense_milliseconds": _summary(dense_seconds),
        "speedup_over_pairwise": round(sum(pairwise_seconds) / sum(seconds), 2),
        "speedup_over_dense": round(sum(dense_seconds) / sum(seconds[: len(dense_seconds)]), 1),
    }


def _num_runs(rle: Rle) -> int:
    """Count the numbers in COCO's string: each ends with a symbol below 80."""
    return sum(symbol < 80 for symbol in rle["counts"].encode())


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    milliseconds = 1000 * np.asarray(seconds)
    return {
        "min": round(float(milliseconds.min()), 2),
        "median": round(float(np.median(milliseconds)), 2),
        "p95": round(float(np.quantile(milliseconds, 0.95)), 2),
        "max": round(float(milliseconds.max()), 2),
    }


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'CPU ms per image':<34}{'min':>9}{'median':>9}{'p95':>9}{'max':>9}"]
    for name, case in result["cases"].items():
        lines.append(f"{name}: {case['images']} images, {case['runs_per_image']:,} runs per image")
        for label, key in (
            ("mask tree", "milliseconds"),
            ("mask tree, preset paper", "paper_preset_milliseconds"),
            ("pycocotools, one call per pair", "pairwise_milliseconds"),
            ("dense numpy", "dense_milliseconds"),
        ):
            summary = case[key]
            cells = "".join(f"{summary[column]:>9,.1f}" for column in ("min", "median", "p95", "max"))
            lines.append(f"  {label:<32}{cells}")
        lines.append(
            f"  {case['images_per_second_per_core']} images/s per core; "
            f"{case['speedup_over_pairwise']}x one call per pair, {case['speedup_over_dense']}x dense"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure; print and write the results."""
    payload = {"context": capture_context(), **measure()}
    write_json(RESULT, payload)
    print(_table(payload))
    print(json.dumps(payload))


if __name__ == "__main__":
    main()
