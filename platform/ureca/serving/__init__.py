"""The captioner as a service: an HTTP API in front of vLLM engines, on Ray Serve; and its client.

    client ──HTTP──> Ingress (validates, decodes) ──by image digest──> Captioner replica (mask encoder, vLLM)

Importing this package imports neither Ray nor torch.
"""

import importlib
from typing import Any

__all__ = ["Client", "Settings", "build"]

_MODULES = {
    "Client": "ureca.serving.client",
    "Settings": "ureca.serving.settings",
    "build": "ureca.serving.deployments",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
