"""The captioner behind an HTTP API. `ureca serve serve_apps/captioner.yaml`; options stand in the YAML.

On a cluster: `serve deploy serve_apps/captioner.yaml --address http://HEAD:8265`.
"""

from ureca.serving.deployments import build
from ureca.serving.settings import Settings

__all__ = ["Settings", "build"]
