"""What can be set of proposals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ureca.errors import ConfigError

_MOST_REGIONS = {"segments": 24, "sam": 100}


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """A model of the SAM family, and how it is asked."""

    model: str = "facebook/sam2.1-hiera-large"
    """Hub name or folder of a model for transformers' mask generation: SAM, SAM-HQ, SAM 2, SAM 3's tracker, EdgeTAM."""
    device: str = ""
    """cuda, cuda:1, cpu, …; empty: the GPU that this process has, else the CPU."""
    points_per_side: int = 32
    """The model is asked what lies at each point of a grid; more find smaller things and take longer."""
    points_per_batch: int = 64
    """Points asked at once. Their masks take 12 bytes for each point and pixel of the image: 2.6 GB at 1500 x 2250."""
    min_iou: float = 0.88
    """The quality that the model expects of its mask, from 0 to 1, from which on it is kept."""
    min_stability: float = 0.95
    """How little a mask changes with its threshold, from 0 to 1, from which on it is kept."""

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"proposals.sam.{name}={getattr(self, name)}: give 1 or more")
        for name in ("min_iou", "min_stability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"proposals.sam.{name}={getattr(self, name)}: give a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """Who proposes regions of photos without masks, how many, and of what size."""

    kind: Literal["segments", "sam"] = "segments"
    """segments: pieces of one look, from colors alone, without a model; sam: objects and their parts, from a model."""
    max_regions: int | None = None
    """Most regions of a photo; null: 24 of segments, 100 of sam."""
    min_area_share: float = 0.004
    """Smallest region, as a share of the photo."""
    max_area_share: float = 0.65
    """Largest region, as a share of the photo."""
    max_iou: float = 0.75
    """Of two regions more alike than this only the better one is kept."""
    sam: SamConfig = field(default_factory=SamConfig)
    """For kind sam."""

    def __post_init__(self) -> None:
        if self.max_regions is not None and self.max_regions < 1:
            raise ConfigError(f"proposals.max_regions={self.max_regions}: give 1 or more")
        if not 0 <= self.min_area_share < self.max_area_share <= 1:
            raise ConfigError(
                f"proposals.min_area_share={self.min_area_share}, max_area_share={self.max_area_share}: "
                "give shares from 0 to 1, the smaller first"
            )
        if not 0 < self.max_iou <= 1:
            raise ConfigError(f"proposals.max_iou={self.max_iou}: give a share above 0, at most 1")

    @property
    def most_regions(self) -> int:
        """`max_regions`, or the proposer's own number."""
        return self.max_regions or _MOST_REGIONS[self.kind]
