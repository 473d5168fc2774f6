"""Scenes as files: SA-1B pairs (NAME.jpg with NAME.json) and one ground_truth.jsonl.

    scene_000123.jpg    JPEG, quality 95
    scene_000123.json   {"image": {image_id, width, ...}, "annotations": [{id, segmentation, ...}, ...]}
    ground_truth.jsonl        {"image_id", "seed", "regions": {region_id: {"parent_id", "attributes"}}} per line

The tree and attributes are only in ground_truth.jsonl: a reader of the pairs knows as little as for photos.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as coco_mask

from ureca.corpus.ground_truth import GROUND_TRUTH_FILE
from ureca.nano.scenes.draw import Scene, SceneConfig, draw_scene


def image_id_of(seed: int) -> str:
    """Return the name of a seed's scene, "scene_000123"."""
    return f"scene_{seed:06d}"


def write_scenes(
    directory: str | Path,
    seeds: Iterable[int],
    config: SceneConfig = SceneConfig(),  # noqa: B008 (frozen)
) -> list[str]:
    """Draw the scenes of `seeds` into `directory` (created if missing); return their image ids.

    ground_truth.jsonl is overwritten and describes exactly these seeds.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    image_ids = []
    with open(folder / GROUND_TRUTH_FILE, "w", encoding="utf-8") as truth:
        for seed in seeds:
            scene = draw_scene(seed, config)
            image_id = image_id_of(seed)
            Image.fromarray(scene.image).save(folder / f"{image_id}.jpg", quality=95)
            (folder / f"{image_id}.json").write_text(json.dumps(_sa1b_record(scene)), encoding="utf-8")
            truth.write(json.dumps({"image_id": image_id, "seed": seed, "regions": _truth(scene)}) + "\n")
            image_ids.append(image_id)
    return image_ids


def _truth(scene: Scene) -> dict[str, dict[str, Any]]:
    return {
        region.region_id: {
            "parent_id": scene.regions[region.parent].region_id if region.parent >= 0 else None,
            "attributes": region.attributes,
        }
        for region in scene.regions
    }


def _sa1b_record(scene: Scene) -> dict[str, Any]:
    height, width = scene.image.shape[:2]
    annotations = []
    for region in scene.regions:
        bbox = [float(value) for value in coco_mask.toBbox(region.segmentation)]
        annotations.append(
            {
                "id": int(region.region_id),
                "segmentation": region.segmentation,
                "bbox": bbox,
                "area": int(coco_mask.area(region.segmentation)),
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "crop_box": [0, 0, width, height],
                "point_coords": [[bbox[0] + bbox[2] / 2, bbox[1] + bbox[3] / 2]],
            }
        )
    return {
        "image": {
            "image_id": scene.seed,
            "width": width,
            "height": height,
            "file_name": f"{image_id_of(scene.seed)}.jpg",
        },
        "annotations": annotations,
    }
