"""Label a corpus: describers, distractors, the passes over an image's mask tree, the Ray Data pipeline."""

import importlib
from typing import Any

__all__ = ["AttributesDescriber", "LabelConfig", "LabelSummary", "label_corpus", "label_image"]

_HOMES = {
    "AttributesDescriber": "ureca.labeling.attributes_describer",
    "LabelConfig": "ureca.labeling.config",
    "LabelSummary": "ureca.labeling.pipeline",
    "label_corpus": "ureca.labeling.pipeline",
    "label_image": "ureca.labeling.walk",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
