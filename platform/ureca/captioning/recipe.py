"""Everything that a job's captions depend on, resolved by the driver."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ureca.captioning.config import CaptionConfig
from ureca.captioning.endpoint_source import EndpointSource, served_model
from ureca.captioning.engine_source import EngineSource
from ureca.captioning.source import CaptionSource
from ureca.config import config_to_dict
from ureca.corpus.schema import SCHEMA_VERSION
from ureca.model.exporting.export import export_digest
from ureca.model.internvl.presets import packaged_weights
from ureca.model.processor import STYLE_QUERIES

_DIGITS = 16
"""Digits of a digest in a table."""


@dataclass(frozen=True)
class CaptionRecipe:
    """Resolved captioner. Actors have neither the driver's environment nor, on a cluster, its package folder."""

    config: CaptionConfig
    model: str
    """Captioner, as recorded in the table: NAME@sha256:DIGEST of an export, or the name of a service's model."""
    folder: str = ""
    """Folder of the export; empty: the packaged nano captioner, located on the actor's machine."""
    token: str = field(default="", repr=False)

    @classmethod
    def read(cls, config: CaptionConfig) -> "CaptionRecipe":
        """Resolve the captioner.

        Raises:
            CheckpointError: the model's folder is not an export.
            ConfigError: the service does not answer as expected.
        """
        if config.endpoint.url:
            token = config.endpoint.token()
            return cls(config, served_model(config.endpoint, token), token=token)
        folder = str(Path(config.model).resolve()) if config.model else ""
        path = _export_dir(folder)
        EngineSource(path, config.engine)  # checks the export; starts nothing
        return cls(config, f"{path.name}@sha256:{export_digest(path)[:_DIGITS]}", folder)

    @property
    def prompt_version(self) -> str | None:
        """Digest of the queries; None where the service decides them."""
        if self.config.endpoint.url:
            return None
        queries = "\n".join(STYLE_QUERIES[style] for style in self.config.styles)
        return hashlib.sha256(queries.encode()).hexdigest()[:_DIGITS]

    def make(self) -> CaptionSource:
        """Create the caption source of a process. Nothing is started or sent yet."""
        if self.config.endpoint.url:
            return EndpointSource(
                self.config.endpoint,
                token=self.token,
                model=self.model,
                images_in_flight=self.config.images_in_flight,
            )
        return EngineSource(_export_dir(self.folder), self.config.engine)

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the rows, without location, speed and number of processes."""
        config = self.config
        return {
            "sources": list(config.sources),
            "images": config_to_dict(config.image_settings()),
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "prompt_version": self.prompt_version,
            "styles": list(config.styles),
            "max_tokens": config.max_tokens,
            "dtype": config.engine.dtype,
        }


def _export_dir(folder: str) -> Path:
    return Path(folder) if folder else packaged_weights("captioner")
