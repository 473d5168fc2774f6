"""Configuration of a job that captions a corpus with a trained captioner."""

import os
from dataclasses import dataclass, field
from typing import Literal

from ureca.engine.config import EngineConfig
from ureca.errors import ConfigError
from ureca.pipeline.config import CaptionJobConfig, check_minimum


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A running caption service to use in place of the job's own engines."""

    url: str = ""
    """Address, e.g. http://localhost:8000. Empty: the job starts engines."""
    token_env: str = "URECA_TOKEN"
    """Environment variable with the access token, if the service requires one."""
    model: str = ""
    """Model of the service. Empty: its first."""
    timeout_seconds: float = 300.0
    """Timeout of one request."""
    retries: int = 24
    """Retries, with growing delays, when the service is full or has no engine. 24 retries cover an outage of ten
    minutes; then the job stops, and the same command resumes it."""
    regions_per_request: int = 64
    """Maximum captions per request; all requests of an image share its prefix in the service's cache."""

    def __post_init__(self) -> None:
        check_minimum(self, {"timeout_seconds": 1, "retries": 0, "regions_per_request": 1}, section="endpoint")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"endpoint.url={self.url}: must begin with http:// or https://")

    def token(self) -> str:
        """Return the access token from this process's environment; empty if unset."""
        return os.environ.get(self.token_env, "")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(CaptionJobConfig):
    """A corpus to caption, and the captioner to use.

    Sources may also be region tables (.parquet), whose regions get new captions and keep their tree.
    """

    model: str = ""
    """Folder of an export, reachable from every machine of the cluster. Empty: the packaged nano captioner."""
    styles: tuple[Literal["brief", "detailed", "unique"], ...] = ("unique",)
    """Caption styles to write: brief into short_caption, detailed into long_caption, unique into caption."""
    max_tokens: int = 96
    """Maximum tokens per caption; regions with a truncated caption are flagged cut_off."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """vLLM engine of each worker process."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """A running service in place of the engines."""
    actors: int = 0
    """Worker processes, each with an engine. 0: as many engines as the cluster's GPUs hold; one without GPUs or with an
    endpoint."""
    images_in_flight: int = 8
    """Images that one process works on concurrently, so that its engine stays busy while others are read. Raise it
    for images with few regions."""
    images_per_block: int = 8
    """Images per block. A block is written at once, as two small files; an interruption loses unfinished blocks only.
    Raise it for fewer files, lower it to lose less work."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, {"max_tokens": 1})
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise ConfigError(f"styles={','.join(self.styles)}: name each style once: brief, detailed, unique")
        if self.table and self.table in self.sources:
            raise ConfigError(f"table={self.table}: is a source too. Write the new captions to another table.")
        if self.endpoint.url and (self.model or self.engine != EngineConfig()):
            raise ConfigError(
                f"endpoint.url={self.endpoint.url}: the service has its own model and engine. "
                "Omit model and engine.*, or the endpoint."
            )
