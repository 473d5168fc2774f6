"""Cost of mask encoding: parameters, operations, seconds and memory, by kind, N, tiles and width.

    python benchmarks/mask_encoder.py            (measures a CUDA GPU too if there is one)

64 regions of one photo, ellipses and thin ones from 0.05% to 30% of it, on 1, 3, 7 and 13 tiles (thumbnail counted), at
the embedding widths of InternVL2.5-1B (896) and -8B (4096). Next to ours:

    naive    one region at a time, every tile of it encoded, empty or not: the authors' way
    ours     only tiles that a region touches, those of all regions together

Operations (2 per product and sum; convolutions and matrix products) and memory (results that are alive at once; weights
and what a kernel needs inside not counted) are counted on tensors without data. On a CPU seconds are those of one
thread's own time, whoever else is on the machine; where a case would take long, fewer regions are measured and the
time is multiplied (`measured_regions`, `naive_measured_regions`). Cutting mask tiles from run-length masks is measured
apart, against decoding and resizing the whole mask. Prints tables and, as the last line, one JSON; writes
runs/benchmarks/mask_encoder.json.
"""

import json
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from ureca.hardware import capture_context
from ureca.model.flops import mask_encoder_tile
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig, MaskTiles, tile_boxes
from ureca.regions.rle import Rle, decode_rle, encode_mask
from ureca.regions.tiles import mask_tiles, tile_grid
from ureca.storage.files import write_json

NUM_REGIONS = 64
PHOTOS = {1: ((1500, 1500), 1), 3: ((1500, 2667), 6), 7: ((1500, 2250), 6), 13: ((1500, 2000), 12)}
"""Tiles, thumbnail counted -> size (height, width) and tile limit of a photo with this number."""
WIDTHS = {"1B": 896, "8B": 4096}
TOKENS_PER_TILE = (4, 8, 16, 32)
KINDS = ("channels", "tokens")
FLOPS_AT_MOST, TILES_AT_MOST = 1.2e10, 48
"""Limits of a case measured on a CPU: some tenths of a second of one core."""
RESULT = Path("runs/benchmarks/mask_encoder.json")


def drawn_regions(size: tuple[int, int]) -> list[Rle]:
    """64 ellipses, every fourth of them thin, of log-uniform area."""
    height, width = size
    rng = np.random.default_rng(0)
    regions = []
    for number in range(NUM_REGIONS):
        area = np.exp(rng.uniform(np.log(0.0005), np.log(0.3))) * height * width
        ratio = rng.uniform(12, 20) if number % 4 == 0 else rng.uniform(0.4, 2.5)
        half_height = min((area * ratio / np.pi) ** 0.5, height / 2 - 1)
        half_width = min(area / np.pi / half_height, width / 2 - 1)
        y, x = rng.uniform(half_height, height - half_height), rng.uniform(half_width, width - half_width)
        down, right = np.ogrid[:height, :width]
        inside = ((down + 0.5 - y) / half_height) ** 2 + ((right + 0.5 - x) / half_width) ** 2 <= 1
        regions.append(encode_mask(inside))
    return regions


def cut(rle: Rle, max_tiles: int) -> MaskTiles:
    values, places = mask_tiles(rle, tile_px=448, max_tiles=max_tiles)
    return MaskTiles(torch.from_numpy(values), torch.from_numpy(places), tile_grid(rle["size"], 448, max_tiles))


def cut_naively(rle: Rle, max_tiles: int) -> np.ndarray:
    """Every tile, from the decoded mask resized as a picture; the thumbnail bicubic, as the authors' is."""
    columns, rows = tile_grid(rle["size"], 448, max_tiles)
    picture = Image.fromarray(decode_rle(rle).astype(np.float32))
    canvas = np.asarray(picture.resize((448 * columns, 448 * rows), Image.Resampling.NEAREST))
    tiles = [canvas[y * 448 : y * 448 + 448, x * 448 : x * 448 + 448] for y in range(rows) for x in range(columns)]
    if len(tiles) > 1:
        tiles.append(np.asarray(picture.resize((448, 448), Image.Resampling.BICUBIC)))
    return np.stack(tiles)[:, None]


def every_tile(mask: MaskTiles) -> torch.Tensor:
    tiles = torch.zeros(mask.num_tiles, *mask.values.shape[1:])
    tiles[mask.places] = mask.values
    return tiles


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors that operations made and that are alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return made

    def _freed(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.alive -= num_bytes


def memory_of(run: Callable[[], Any]) -> int:
    with PeakMemory() as memory:
        made = run()
        del made
    return memory.peak


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """The faster of two runs after one to warm up."""

    def once() -> float:
        if device == "cpu":
            started = time.thread_time()
            run()
            return time.thread_time() - started
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    return min([once() for _ in range(3 if device == "cpu" else 6)][1:])


def measure_case(kind: str, n: int, width: int, masks: Sequence[MaskTiles], device: str) -> dict[str, Any]:
    config = MaskEncoderConfig(kind=kind, tokens_per_tile=n, hidden_size=width)  # type: ignore[arg-type]
    num_tiles = masks[0].num_tiles
    touched = sum(len(mask.values) for mask in masks)
    encoded = touched + (kind == "channels" and touched < num_tiles * len(masks))
    flops_of_tile = mask_encoder_tile(config).forward

    with torch.device("meta"):
        empty = MaskEncoder(config)
        boxes = tile_boxes(*masks[0].grid)
    without_data = [MaskTiles(mask.values.to("meta"), mask.places, mask.grid) for mask in masks]
    one = torch.empty(num_tiles, 1, 448, 448, device="meta")
    learning = memory_of(lambda: empty(without_data))

    with torch.device("meta"):  # any weights do, and drawing 51 million takes longer than what is measured
        encoder = MaskEncoder(config).to(torch.bfloat16 if device == "cuda" else torch.float32)
    encoder = encoder.to_empty(device=device).requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.fill_(0.01)
    empty.requires_grad_(False)
    affordable = touched if device == "cuda" else min(int(FLOPS_AT_MOST / flops_of_tile), TILES_AT_MOST)
    number = int(np.searchsorted(np.cumsum([len(mask.values) for mask in masks]), affordable)) + 1
    chosen = list(masks[:number])
    naive_number = max(1, min(affordable // num_tiles, len(masks)))
    dense = [every_tile(mask) for mask in masks[:naive_number]]
    on_device, placed = [mask.to(device) for mask in chosen], tile_boxes(*masks[0].grid).to(device)

    def naively() -> None:
        for tiles in dense:
            encoder.body(tiles.to(device), placed)

    seconds = seconds_of(lambda: encoder(on_device), device)
    # Regions differ in tiles: by tiles, not by regions, is the time to be multiplied.
    seconds *= encoded / (sum(len(mask.values) for mask in chosen) + encoded - touched)
    naive_seconds = seconds_of(naively, device) * len(masks) / naive_number
    return {
        "kind": kind,
        "num_tokens": n,
        "width": width,
        "tiles": num_tiles,
        "device": device,
        "regions": len(masks),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "flops_per_tile": flops_of_tile,
        "tiles_encoded": encoded,
        "naive_tiles_encoded": num_tiles * len(masks),
        "flops": flops_of_tile * encoded,
        "naive_flops": flops_of_tile * num_tiles * len(masks),
        "mask_tokens": n * (touched if kind == "tokens" else num_tiles * len(masks)),
        "seconds": round(seconds, 4),
        "naive_seconds": round(naive_seconds, 4),
        "speedup": round(naive_seconds / seconds, 2),
        "measured_regions": len(chosen),
        "naive_measured_regions": naive_number,
        "memory_bytes": memory_of(lambda: empty(without_data)),
        "naive_memory_bytes": memory_of(lambda: empty.body(one, boxes)),
        "learning_memory_bytes": learning,
    }


def measure_cutting(tiles: int, regions: Sequence[Rle]) -> dict[str, Any]:
    _, max_tiles = PHOTOS[tiles]
    ours = seconds_of(lambda: [cut(rle, max_tiles) for rle in regions], "cpu")
    some = regions[:8]
    naive = seconds_of(lambda: [cut_naively(rle, max_tiles) for rle in some], "cpu") * len(regions) / len(some)
    kept = [cut(rle, max_tiles).values for rle in regions]
    return {
        "tiles": tiles,
        "size": list(PHOTOS[tiles][0]),
        "milliseconds_per_region": round(1000 * ours / len(regions), 2),
        "naive_milliseconds_per_region": round(1000 * naive / len(regions), 2),
        "speedup": round(naive / ours, 2),
        "tiles_per_region": round(sum(map(len, kept)) / len(regions), 2),
        "bytes": sum(each.numel() * 4 for each in kept),
        "naive_bytes": len(regions) * tiles * 448 * 448 * 4,
    }


def measure() -> dict[str, Any]:
    """All cases."""
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    cases: list[dict[str, Any]] = []
    cutting = []
    for tiles, (size, max_tiles) in PHOTOS.items():
        regions = drawn_regions(size)
        cutting.append(measure_cutting(tiles, regions))
        masks = [cut(rle, max_tiles) for rle in regions]
        assert masks[0].num_tiles == tiles
        for device in devices:
            cases += [
                measure_case(kind, n, width, masks, device)
                for kind in KINDS
                for width in WIDTHS.values()
                for n in TOKENS_PER_TILE
            ]
        print(f"mask_encoder  {tiles} tiles done", flush=True)
    return {"regions": NUM_REGIONS, "cutting": cutting, "cases": cases}


def as_table(result: dict[str, Any]) -> str:
    lines = [
        f"cutting tiles, CPU ms a region    {'tiles':>6}{'ours':>8}{'naive':>8}{'times':>7}{'MB of 64':>10}{'naive':>7}"
    ]
    lines += [
        f"{'':<34}{c['tiles']:>6}{c['milliseconds_per_region']:>8}{c['naive_milliseconds_per_region']:>8}"
        f"{c['speedup']:>7}{c['bytes'] / 1e6:>10.0f}{c['naive_bytes'] / 1e6:>7.0f}"
        for c in result["cutting"]
    ]
    lines.append(
        f"\n{result['regions']} regions\n{'':<5}{'kind':<9}{'D':>5}{'N':>4}{'tiles':>6}{'M weights':>11}"
        f"{'GFLOP/tile':>11}{'GFLOP':>8}{'naive':>8}{'ms':>9}{'naive':>9}{'times':>7}{'MB':>6}{'learning':>9}"
    )
    lines += [
        f"{c['device']:<5}{c['kind']:<9}{c['width']:>5}{c['num_tokens']:>4}{c['tiles']:>6}"
        f"{c['parameters'] / 1e6:>11.2f}{c['flops_per_tile'] / 1e9:>11.3f}{c['flops'] / 1e9:>8.1f}"
        f"{c['naive_flops'] / 1e9:>8.1f}"
        f"{1000 * c['seconds']:>9.1f}{1000 * c['naive_seconds']:>9.1f}{c['speedup']:>7.1f}"
        f"{c['memory_bytes'] / 1e6:>6.0f}{c['learning_memory_bytes'] / 1e6:>9.0f}"
        for c in result["cases"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    payload = {"context": capture_context(), **measure()}
    write_json(RESULT, payload)
    print(as_table(payload))
    print(json.dumps(payload))


if __name__ == "__main__":
    main()
