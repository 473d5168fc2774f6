"""The one adapter to vLLM: an image, its regions and queries in, captions out; or a chat about pictures.

Importing this package imports neither vLLM nor torch; starting an engine does.
"""

from typing import Any

__all__ = ["Caption", "CaptionEngine", "ChatEngine", "Equality", "compare_with_transformers"]

_MODULES = {
    "Caption": "ureca.engine.caption",
    "CaptionEngine": "ureca.engine.engine",
    "ChatEngine": "ureca.engine.chat",
    "Equality": "ureca.engine.equality",
    "compare_with_transformers": "ureca.engine.equality",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
