"""Label a corpus: describers, distractors, the passes over an image's mask tree, the Ray Data pipeline."""

import importlib
from typing import Any

__all__ = [
    "AttributesDescriber",
    "ImageLabeler",
    "LabelConfig",
    "LabelSummary",
    "MaskTreesConfig",
    "MaskTreesSummary",
    "build_mask_trees",
    "label_corpus",
    "plan_labeling",
]

_HOMES = {
    "AttributesDescriber": "ureca.labeling.attributes_describer",
    "ImageLabeler": "ureca.labeling.walk",
    "LabelConfig": "ureca.labeling.config",
    "LabelSummary": "ureca.labeling.pipeline",
    "MaskTreesConfig": "ureca.labeling.mask_trees",
    "MaskTreesSummary": "ureca.labeling.mask_trees",
    "build_mask_trees": "ureca.labeling.mask_trees",
    "label_corpus": "ureca.labeling.pipeline",
    "plan_labeling": "ureca.labeling.fanout",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
