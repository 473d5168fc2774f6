"""A small report with a photo and a drawn scene, and words in it that would break a careless page."""

import dataclasses

import numpy as np

from ureca.nano.scenes.draw import draw_scene
from ureca.regions.rle import encode_mask
from ureca.viewer.plots import Curve
from ureca.viewer.report_data import ReportData, ReportImage, ReportRegion, ScoreDifference

HOSTILE = "<script>window.broken = 1</script> & \"quoted\" </style> 'single'"
NOTE = "It does not know what anything is for."
VARIANTS = ("none", "tuned_none", "mask_stage2")


def region(index, parent, segmentation, caption):
    return ReportRegion(
        region_id=str(index),
        parent=parent,
        segmentation=segmentation,
        short_caption=f"short {index}",
        long_caption=f"long {index}; it has a part",
        caption=caption,
        captions={name: f"{name} says {index}" for name in VARIANTS},
        picks_own={"mask_stage2": index % 2 == 0},
        flags=("not unique",) if index == 1 else (),
    )


def drawn_image(seed=3):
    scene = draw_scene(seed)
    regions = tuple(
        region(index, each.parent, each.segmentation, f"caption {index}") for index, each in enumerate(scene.regions)
    )
    return ReportImage(image_id=f"scene_{seed}", kind="drawn", image=scene.image, regions=regions)


def photo():
    """Not a photo, but of a photo's proportions: nested boxes on noise."""
    image = np.random.default_rng(0).integers(90, 160, (300, 450, 3)).astype(np.uint8)
    regions = []
    for index in range(3):
        mask = np.zeros((300, 450), bool)
        mask[30 * index + 10 : 280 - 60 * index, 40 * index + 20 : 400 - 80 * index] = True
        image[mask] = (40 + 70 * index, 90, 200 - 60 * index)
        regions.append(region(index, index - 1, encode_mask(mask), HOSTILE if index == 0 else f"box {index}"))
    return ReportImage(
        image_id="photo", kind="photo", image=image, regions=tuple(regions), title=HOSTILE, credit=HOSTILE
    )


def sample(**changes):
    scores = {
        name: {
            metric: {"value": 0.2 * (place + 1), "low": 0.2 * place + 0.1, "high": 0.2 * place + 0.3}
            for metric in ("rouge_l", "meteor", "cider", "attribute_accuracy", "uniqueness")
        }
        for place, name in enumerate(VARIANTS)
    }
    data = ReportData(
        notes=[NOTE],
        title=f"A sample {HOSTILE}",
        intro=HOSTILE,
        scores=scores,
        ceiling={"uniqueness": {"value": 0.987, "low": 0.98, "high": 0.99}},
        accuracy={"tiny": {"color": 0.25, "all": 0.5}, "large": {"place_in_parent": 0.75, "all": 0.875}},
        strata={"depth": {"0": {"regions": 1234, "uniqueness": 0.375}, HOSTILE: {"regions": 2, "rouge_l": 0.125}}},
        differences=[
            ScoreDifference(metric="rouge_l", better="mask_stage2", worse="tuned_none", value=0.2, low=0.1, high=0.3)
        ],
        curves=[Curve(HOSTILE, [0, 1, 2], [3.0, 2.0, 1.0])],
        facts=[("images", "2"), (HOSTILE, HOSTILE)],
        images=[drawn_image(), photo()],
    )
    return dataclasses.replace(data, **changes)
