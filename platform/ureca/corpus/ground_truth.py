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
        InputError: the folder has no ground truth file, or a line of the file is malformed.
    """
    path = Path(directory) / GROUND_TRUTH_FILE
    if not path.is_file():
        raise InputError(f"{path}: not found. Name a folder with ground truth, e.g. one of drawn scenes.")
    truth: GroundTruth = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                truth[record["image_id"]] = {key: _checked_region(region) for key, region in record["regions"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{path}: line {number} is not ground truth ({type(error).__name__}: {error}). Expected "
                    '{"image_id": "NAME", "regions": {"ID": {"attributes": {"color": "red"}}}}.'
                ) from error
    return truth


def _checked_region(region: dict[str, Any]) -> dict[str, Any]:
    for name, value in region["attributes"].items():
        if not isinstance(value, str):
            raise TypeError(f"attribute {name} is {value!r}, not a string")
    return region
