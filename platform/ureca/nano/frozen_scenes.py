"""Frozen benchmark of nano: 128 synthetic scenes that are never used for training.

    frozen_scenes.json    name, seeds, version of the scenes, and per seed
                      truth   SHA-256 (first 16 digits) of masks, tree, words and what covers what
                      looks   mean color of each of 4 x 4 fields of the image

Masks, tree and words must be bit-identical. Pixels need not: the sines of the soft background and the resizing of its
clouds are rounded differently by different processors and builds of numpy and Pillow, so the image is compared by mean
colors, within LOOKS_TOLERANCE of 256 levels.

`python -m ureca.nano.frozen_scenes` rewrites the file. Scores on it are then no longer comparable with earlier ones:
give it a new NAME.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ureca.errors import UrecaError
from ureca.nano.scenes.draw import SCENES_VERSION, Scene, SceneRegion, draw_scene
from ureca.nano.scenes.files import image_id_of

NAME = "nano-1"
SEEDS = range(910_000_000, 910_000_128)
"""Pretraining draws from seeds below 900,000,000 and evaluates on later ones."""

FIELDS = 4
LOOKS_TOLERANCE = 2.0
_FILE = Path(__file__).with_name("frozen_scenes.json")


class BenchmarkError(UrecaError):
    """A drawn scene differs from the frozen one."""


def load_benchmark() -> list[Scene]:
    """Return the scenes of the benchmark, in the order of their seeds.

    Raises:
        BenchmarkError: a scene differs from the frozen one, in its truth or in its colors.
    """
    return list(_checked_scenes())


def region_strata() -> dict[str, dict[str, dict[str, str]]]:
    """Return image id -> region id -> {stratum: value} for facts known only to the generator.

    `role` thing, part or background; `thin` yes or no; `covered` (a thing or part with pixels hidden by another) yes or
    no; `alike` (belongs to one of several things that differ in one attribute) yes or no. Size, depth and crowding are
    computed for every region table.
    """
    return {
        image_id_of(scene.seed): {region.region_id: _strata(region) for region in scene.regions}
        for scene in _checked_scenes()
    }


def check_scenes(scenes: Sequence[Scene], frozen: dict[str, Any]) -> None:
    """Compare scenes with their frozen record, as returned by `freeze`.

    Raises:
        BenchmarkError: naming the first seed that differs, and in what.
    """
    remedy = (
        f"Scores on it would not compare with published ones. They are from version {frozen['scenes_version']} of the "
        f"scenes, this package draws version {SCENES_VERSION}: install the package that the scores are from."
    )
    if [scene.seed for scene in scenes] != frozen["seeds"]:
        raise BenchmarkError(f"benchmark {frozen['name']}: it has other seeds than it was frozen with. {remedy}")
    looks = np.frombuffer(base64.b64decode(frozen["looks"]), np.uint8).reshape(len(scenes), FIELDS, FIELDS, 3)
    for scene, truth, look in zip(scenes, frozen["truth"], looks, strict=True):
        where = f"benchmark {frozen['name']}, scene of seed {scene.seed}"
        if truth_digest(scene) != truth:
            raise BenchmarkError(f"{where}: its masks, tree or words are not those that were frozen. {remedy}")
        off = float(np.abs(mean_colors(scene.image) - look).max())
        if off > LOOKS_TOLERANCE:
            raise BenchmarkError(
                f"{where}: its picture is not the one that was frozen (mean colors differ by {off:.0f} of 256 levels). "
                f"{remedy}"
            )


def freeze(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return the content of frozen_scenes.json for these scenes."""
    looks = np.stack([np.rint(mean_colors(scene.image)).astype(np.uint8) for scene in scenes])
    return {
        "name": NAME,
        "scenes_version": SCENES_VERSION,
        "seeds": [scene.seed for scene in scenes],
        "regions": sum(len(scene.regions) for scene in scenes),
        "truth": [truth_digest(scene) for scene in scenes],
        "looks": base64.b64encode(looks.tobytes()).decode(),
    }


def truth_digest(scene: Scene) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of everything known of a scene except its pixels."""
    facts = [
        [
            region.region_id,
            region.parent,
            region.depth,
            sorted(region.attributes.items()),
            region.segmentation["size"],
            region.segmentation["counts"],
            round(region.seen_share, 6),
            region.alike,
            region.is_area,
        ]
        for region in scene.regions
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def mean_colors(image: np.ndarray) -> np.ndarray:
    """Return float64 (FIELDS, FIELDS, 3): mean RGB of each field of an image (uint8 (H, W, 3)) of 256 x 256 px."""
    side = image.shape[0] // FIELDS
    return image.reshape(FIELDS, side, FIELDS, side, 3).mean((1, 3))


@cache
def _checked_scenes() -> tuple[Scene, ...]:
    scenes = tuple(draw_scene(seed) for seed in SEEDS)
    check_scenes(scenes, json.loads(_FILE.read_text(encoding="utf-8")))
    return scenes


def _strata(region: SceneRegion) -> dict[str, str]:
    return {
        "role": "background" if region.is_area else "part" if region.part else "thing",
        "thin": _yes(region.attributes["shape"] == "thin"),
        "covered": _yes(region.seen_share < 1 and not region.is_area),
        "alike": _yes(region.alike),
    }


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    _FILE.write_text(json.dumps(freeze([draw_scene(seed) for seed in SEEDS]), indent=1) + "\n", encoding="utf-8")
