"""Label a corpus: describers, distractors, the passes over an image's mask tree, the Ray Data pipeline."""

import importlib
from typing import Any

__all__ = ["AttributesDescriber", "ImageLabeler", "LabelConfig", "LabelSummary", "label_corpus"]

_HOMES = {
    "AttributesDescriber": "ureca.labeling.attributes_describer",
    "ImageLabeler": "ureca.labeling.walk",
    "LabelConfig": "ureca.labeling.config",
    "LabelSummary": "ureca.labeling.pipeline",
    "label_corpus": "ureca.labeling.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
