"""Configuration that all corpus jobs share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ureca.corpus.read import ReadLimits
from ureca.errors import ConfigError
from ureca.pipeline.usage import PriceConfig
from ureca.proposals.config import ProposalConfig
from ureca.regions.tree import TreeConfig


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Reading of an image and construction of its mask tree."""

    limits: ReadLimits = field(default_factory=ReadLimits)
    """Limits on image size."""
    tree: TreeConfig = field(default_factory=TreeConfig)
    """Rules of the mask tree."""
    proposals: ProposalConfig | None = None
    """Region proposals for photos without masks; None: such photos are quarantined."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Fields of every job that turns the images of a corpus into rows of a region table."""

    sources: tuple[str, ...]
    """Images and masks, local or s3://: folders of NAME.jpg with NAME.json (SA-1B) or PNG masks, tar shards, COCO,
    LVIS and panoptic annotation files. docs/corpora.md lists all kinds."""
    run_directory: str = ""
    """Local folder of the run. Empty: runs/<job>."""
    table: str = ""
    """Region table to write, one parquet file, local or s3://, reachable from every machine. Empty: a table in the
    run's folder."""
    overwrite: bool = False
    """Delete the results of an earlier start with other settings. Otherwise such a start is refused."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """Limits on image size."""
    tree: str = "default"
    """Preset of the mask tree: default, or paper (as its code: first fit, four levels, 0.7 to 70 %)."""
    proposals: ProposalConfig | None = None
    """Region proposals for photos without masks (--proposals.kind=segments or sam). Null: such photos are
    quarantined."""
    actors: int = 0
    """Worker processes. 0: as many as GPUs allow, or one per CPU of the cluster less two for reading and writing."""
    images_per_block: int = 4
    """Images per block. A block is written at once, as two small files; an interruption loses unfinished blocks only.
    Raise it for fewer files, lower it to lose less work."""
    crash_attempts: int = 2
    """Crashes of a process that holds only one image before that image is quarantined."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources is empty: name the folders that hold the photos and their masks")
        check_minimum(self, {"actors": 0, "images_per_block": 1, "crash_attempts": 1})
        if self.table and not self.table.endswith(".parquet"):
            raise ConfigError(f"table={self.table}: must be the name of a .parquet file")
        TreeConfig.preset(self.tree)

    def image_settings(self) -> ImageSettings:
        """Return how each image is read and its tree built."""
        return ImageSettings(limits=self.limits, tree=TreeConfig.preset(self.tree), proposals=self.proposals)


@dataclass(frozen=True, kw_only=True)
class CaptionJobConfig(JobConfig):
    """Fields of every job that captions images and reports its usage."""

    images_in_flight: int = 32
    """Images that one process works on concurrently. More keep a slow endpoint busier and take more memory."""
    prices: PriceConfig = field(default_factory=PriceConfig)
    """Prices for the usage report."""
    project_images: int = 0
    """Number of images to project the usage report to. 0: no projection."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, {"images_in_flight": 1, "project_images": 0})


def check_minimum(config: Any, minimums: Mapping[str, float], *, section: str = "") -> None:
    """Raise ConfigError if a field of `config` is below its minimum."""
    for name, minimum in minimums.items():
        if getattr(config, name) < minimum:
            prefix = f"{section}." if section else ""
            raise ConfigError(f"{prefix}{name}={getattr(config, name)}: must be at least {minimum}")
