"""The captioner behind an HTTP API. Start it with `ureca serve serve_apps/captioner.yaml`; the YAML holds the options.

On a cluster: `serve deploy serve_apps/captioner.yaml --address http://HEAD:8265`.
"""

from ureca.serving.deployments import build as build
from ureca.serving.settings import Settings as Settings
