"""URECA on Ray: a unique caption for every region of every image.

The names below are the public ones; importing this package imports none of them until they are used.
"""

import importlib
from typing import Any

__all__ = ["Captioner", "Client", "build_mask_tree", "read_regions"]

_HOMES = {
    "Captioner": "ureca.model",
    "Client": "ureca.serving",
    "build_mask_tree": "ureca.regions",
    "read_regions": "ureca.corpus",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ureca' has no attribute {name!r}. It has: {', '.join(__all__)}.")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
