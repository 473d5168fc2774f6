"""Requests about a drawn picture of nested boxes, for describers that look."""

from typing import Any

import numpy as np

from ureca.corpus.schema import Distractor
from ureca.labeling.describers.base import DescribeRequest, Pass
from ureca.regions.rle import box_to_rle

SIZE = (300, 400)
BOXES = [(20, 20, 220, 280), (40, 40, 120, 120), (250, 40, 330, 120), (60, 60, 80, 80), (380, 280, 384, 296)]
"""x0, y0, x1, y1: a large box, a part of it, one like that part, a part of the part, a sliver in the corner."""
PARENTS = (-1, 0, -1, 1, -1)
COLORS = [(200, 60, 50), (40, 90, 200), (40, 90, 190), (240, 220, 60), (20, 160, 60)]
SEGMENTATIONS = tuple(box_to_rle(box, SIZE) for box in BOXES)


def picture() -> np.ndarray:
    """uint8 (300, 400, 3): the boxes on a gray ground."""
    image = np.full((*SIZE, 3), 150, np.uint8)
    for (left, top, right, bottom), color in zip(BOXES, COLORS, strict=True):
        image[top:bottom, left:right] = color
    return image


FACTS: dict[Pass, dict[str, Any]] = {
    "short": {"parent_caption": "a large red box", "sibling_captions": ("a small blue box on the right",)},
    "long": {"own_caption": "a blue box", "children": (3,), "child_captions": ("a yellow square in the middle",)},
    "unique": {
        "own_caption": "a blue box in a red one",
        "distractors": (Distractor(index=2, similarity=0.97), Distractor(index=4, similarity=0.91)),
        "distractor_captions": ("a blue box on its own", "a green sliver"),
    },
    "choose": {"own_caption": "the blue box in the red one", "candidates": (2, 1, 4)},
    "judge": {"own_caption": "the blue box in the red one"},
}


def request(pass_name: Pass, index: int = 1, **facts: Any) -> DescribeRequest:
    """A request about a region of the picture, with the facts that its pass comes with unless given."""
    return DescribeRequest(
        pass_name=pass_name,
        image=picture(),
        segmentations=SEGMENTATIONS,
        parents=PARENTS,
        index=index,
        **{**FACTS[pass_name], **facts},
    )
