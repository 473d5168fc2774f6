"""What can be set of a labeling job."""

from dataclasses import dataclass, field
from typing import Literal

from ureca.errors import ConfigError
from ureca.labeling.distractors import DistractorConfig
from ureca.labeling.walk import WalkConfig
from ureca.regions.tree import TreeConfig


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """A corpus to label, and how."""

    sources: tuple[str, ...]
    """Folders (local or s3://) of photos with masks in SA-1B's form: NAME.jpg with NAME.json beside it."""
    run_directory: str = ""
    """Local folder of this run; empty: runs/label_corpus."""
    table: str = ""
    """The region table to write, one parquet file (local or s3://); empty: regions.parquet in the run's
    folder. Every machine of the cluster must reach it."""
    tree: str = "default"
    """Preset of the mask tree: default, or paper (as its code: first fit, four levels, 0.7 to 70 %)."""
    describer: Literal["attributes"] = "attributes"
    """Who writes the captions; attributes measures pixels and masks and needs no model."""
    distractors: DistractorConfig = field(default_factory=DistractorConfig)
    """Which regions of an image a caption may be taken for."""
    verify_retries: int = 1
    """How often a caption that fits another region too is asked for again."""
    actors: int = 0
    """Processes that label; 0: one per CPU of the cluster, less two for reading and writing."""
    images_per_block: int = 16
    """Images that are finished, written and, after an interruption, kept together."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources is empty: give the folders that hold the photos and their JSON files")
        for name, least in (("verify_retries", 0), ("actors", 0), ("images_per_block", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: give {least} or more")
        if self.table and not self.table.endswith(".parquet"):
            raise ConfigError(f"table={self.table}: give the name of a .parquet file")
        TreeConfig.preset(self.tree)

    def walk(self) -> WalkConfig:
        """How each image is labeled."""
        return WalkConfig(
            tree=TreeConfig.preset(self.tree),
            distractors=self.distractors,
            verify_retries=self.verify_retries,
        )
