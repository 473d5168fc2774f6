"""Scores of region captions: the field's metrics, attribute accuracy, uniqueness, and their intervals.

The names below are loaded when they are first asked for: captioning needs torch, scoring does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ureca.evaluation.bootstrap import Bootstrap, Interval
    from ureca.evaluation.evaluate import Evaluation, evaluate
    from ureca.evaluation.metrics import CaptionScorer
    from ureca.evaluation.predictions import Prediction, Variant

__all__ = ["Bootstrap", "CaptionScorer", "Evaluation", "Interval", "Prediction", "Variant", "evaluate"]

_HOME = {
    "Bootstrap": "bootstrap",
    "CaptionScorer": "metrics",
    "Evaluation": "evaluate",
    "Interval": "bootstrap",
    "Prediction": "predictions",
    "Variant": "predictions",
    "evaluate": "evaluate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
