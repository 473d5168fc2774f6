"""URECA on Ray: a unique caption for every region of every image.

The names below are the public API. Each is imported on first use, so `import ureca` stays fast.
"""

import importlib
from typing import Any

__all__ = ["Captioner", "Client", "build_mask_tree", "photos_directory", "read_regions", "read_sa1b"]

_HOMES = {
    "Captioner": "ureca.model.captioner",
    "Client": "ureca.client.client",
    "build_mask_tree": "ureca.regions.tree",
    "photos_directory": "ureca.corpus.read",
    "read_regions": "ureca.corpus.table",
    "read_sa1b": "ureca.corpus.read",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ureca' has no attribute {name!r}. It has: {', '.join(__all__)}.")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
