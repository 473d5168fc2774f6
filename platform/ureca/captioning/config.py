"""What can be set of a job that captions a corpus with the captioner."""

import os
from dataclasses import dataclass, field
from typing import Literal

from ureca.corpus.read import ReadLimits
from ureca.engine.config import EngineConfig
from ureca.errors import ConfigError
from ureca.labeling.config import WalkConfig
from ureca.pipeline.usage import PriceConfig
from ureca.proposals.config import ProposalConfig
from ureca.regions.tree import TreeConfig


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A running service to ask, in place of engines of the job's own."""

    url: str = ""
    """Where it is, e.g. http://localhost:8000; empty: the job starts engines."""
    token_env: str = "URECA_TOKEN"
    """Environment variable that holds the access token, where the service asks for one."""
    model: str = ""
    """Which of the service's models; empty: its first."""
    timeout_seconds: float = 300.0
    """For one request."""
    retries: int = 24
    """How often a request is sent again that the service had no place or no engine for, later each time: 24 wait for a
    service that is gone for ten minutes. Then the job stops, and the same command goes on."""
    regions_per_request: int = 64
    """Most captions asked for at once; all requests of an image share its prefix in the service's cache."""

    def __post_init__(self) -> None:
        least = {"timeout_seconds": 1, "retries": 0, "regions_per_request": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"endpoint.{name}={getattr(self, name)}: give {minimum} or more")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"endpoint.url={self.url}: give an address that begins with http:// or https://")

    def token(self) -> str:
        """The access token, if there is one in this process's environment."""
        return os.environ.get(self.token_env, "")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """A corpus to caption, and by which captioner."""

    sources: tuple[str, ...]
    """Images and masks, local or s3://, as label_corpus takes them; or region tables (.parquet), whose regions are
    captioned anew. docs/corpora.md has all kinds."""
    run_directory: str = ""
    """Local folder of this run; empty: runs/caption_corpus."""
    table: str = ""
    """The region table to write, one parquet file (local or s3://); empty: regions.parquet in the run's
    folder. Every machine of the cluster must reach it."""
    overwrite: bool = False
    """Delete what an earlier start with other settings has captioned; else such a start is refused."""
    model: str = ""
    """Folder of an export, which every machine of the cluster must reach; empty: nano's, which ships."""
    styles: tuple[Literal["brief", "detailed", "unique"], ...] = ("unique",)
    """Which captions to write: brief goes into short_caption, detailed into long_caption, unique into caption."""
    max_tokens: int = 96
    """Most tokens of one caption; a region with one that was cut is flagged cut_off."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What an image may be."""
    tree: str = "default"
    """Preset of the mask tree: default, or paper (as its code: first fit, four levels, 0.7 to 70 %). Regions of a
    region table keep the tree that they have."""
    proposals: ProposalConfig | None = None
    """Who proposes regions of photos without masks (--proposals.kind=segments or sam); null: they are set aside."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Of each actor."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """A running service in place of the engines."""
    actors: int = 0
    """Processes that caption, with an engine in each; 0: as many engines as the cluster's GPUs hold, and one where
    there are no GPUs or with an endpoint."""
    images_in_flight: int = 8
    """Images that one process works on at once: what keeps its engine busy while others are read. More for images with
    few regions."""
    images_per_block: int = 8
    """Images that are finished, written and, after an interruption, kept together; a block becomes two small files."""
    crash_attempts: int = 2
    """How often the process of an image must die while it is alone in it until the image is set aside."""
    prices: PriceConfig = field(default_factory=PriceConfig)
    """For the account at the end."""
    project_images: int = 0
    """For how many images the account is to say what they would take; 0: none."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources is empty: give folders of photos and masks, or region tables")
        least = {"max_tokens": 1, "actors": 0, "images_in_flight": 1, "images_per_block": 1, "crash_attempts": 1}
        for name, minimum in (least | {"project_images": 0}).items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name}={getattr(self, name)}: give {minimum} or more")
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise ConfigError(f"styles={','.join(self.styles)}: give each style once: brief, detailed, unique")
        if self.table and not self.table.endswith(".parquet"):
            raise ConfigError(f"table={self.table}: give the name of a .parquet file")
        if self.table and self.table in self.sources:
            raise ConfigError(f"table={self.table}: is a source too. Write the new captions into another table.")
        if self.endpoint.url and (self.model or self.engine != EngineConfig()):
            raise ConfigError(
                f"endpoint.url={self.endpoint.url}: the service has its own model and engine. "
                "Leave out model and engine.*, or the endpoint."
            )
        TreeConfig.preset(self.tree)

    def walk(self) -> WalkConfig:
        """How each image is read and its tree built."""
        return WalkConfig(limits=self.limits, tree=TreeConfig.preset(self.tree), proposals=self.proposals)
