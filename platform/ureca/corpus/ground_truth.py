"""Ground truth of a corpus: true attributes of its regions, in a file next to the images.

    ground_truth.jsonl   {"image_id": "scene_000123", "regions": {"7": {"attributes": {"color": "red", ...}}}} per line

`image_id` is the image's file name without its suffix. The file is optional. Labeling copies the attributes into the
region table, where evaluation scores attribute accuracy against them.
"""

import json
import os
from pathlib import Path
from typing import Any

from ureca.errors import InputError

GROUND_TRUTH_FILE = "ground_truth.jsonl"

GroundTruth = dict[str, dict[str, dict[str, Any]]]
"""Image id -> region id -> record with `attributes`."""


def has_ground_truth(directory: str | Path) -> bool:
    """Return whether a local folder has a ground truth file."""
    return os.path.isfile(os.path.join(directory, GROUND_TRUTH_FILE))


def read_ground_truth(directory: str | Path) -> GroundTruth:
    """Read the ground truth of the images in a local folder.

    Raises:
        InputError: the folder has no ground truth file.
    """
    path = Path(directory) / GROUND_TRUTH_FILE
    if not path.is_file():
        raise InputError(f"{path}: not found. Name a folder with ground truth, e.g. one of drawn scenes.")
    with open(path, encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return {record["image_id"]: record["regions"] for record in records}
