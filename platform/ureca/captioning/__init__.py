"""Caption whole corpora with the captioner: its engine inside the actors of a Ray Data job, or a running service."""

import importlib
from typing import Any

__all__ = ["CaptionConfig", "CaptionSummary", "caption_corpus"]

_HOMES = {
    "CaptionConfig": "ureca.captioning.config",
    "CaptionSummary": "ureca.captioning.pipeline",
    "caption_corpus": "ureca.captioning.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
