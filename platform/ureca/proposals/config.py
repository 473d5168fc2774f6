"""Settings of region proposals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ureca.errors import ConfigError

_DEFAULT_MAX_REGIONS = {"segments": 24, "sam": 100}


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """A model of the SAM family and its prompting."""

    model: str = "facebook/sam2.1-hiera-large"
    """Hub name or folder of a model for transformers' mask generation: SAM, SAM-HQ, SAM 2, SAM 3's tracker, EdgeTAM."""
    device: str = ""
    """cpu, cuda or cuda:1. Empty: the GPU that Ray assigned to the process, else the CPU."""
    points_per_side: int = 32
    """Points of the prompt grid per side; more points find smaller regions and take longer."""
    points_per_batch: int = 64
    """Points per forward pass. Lower it if memory runs out: masks take 12 bytes per point and pixel of the image,
    2.6 GB at 1500 x 2250."""
    min_iou: float = 0.88
    """Minimum predicted IoU of a mask, from 0 to 1."""
    min_stability: float = 0.95
    """Minimum stability of a mask under changes of its threshold, from 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"proposals.sam.{name}={getattr(self, name)}: give 1 or more")
        for name in ("min_iou", "min_stability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"proposals.sam.{name}={getattr(self, name)}: give a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """Source, number and size of regions proposed for photos without masks."""

    kind: Literal["segments", "sam"] = "segments"
    """segments: segments of uniform color, without a model; sam: objects and their parts, from a model."""
    max_regions: int | None = None
    """Maximum regions per photo; null: 24 for segments, 100 for sam."""
    min_area_share: float = 0.004
    """Minimum region size, as a fraction of the photo."""
    max_area_share: float = 0.65
    """Maximum region size, as a fraction of the photo."""
    max_iou: float = 0.75
    """Maximum IoU of two regions; above it only the better one is kept."""
    sam: SamConfig = field(default_factory=SamConfig)
    """Settings of kind sam."""

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
    def region_limit(self) -> int:
        """`max_regions`, or the proposer's default."""
        return self.max_regions or _DEFAULT_MAX_REGIONS[self.kind]
