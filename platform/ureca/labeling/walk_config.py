"""What can be set of how one image is labeled."""

from dataclasses import dataclass, field
from typing import Any

from ureca.corpus.read import ReadLimits
from ureca.errors import ConfigError
from ureca.labeling.distractors import DistractorConfig
from ureca.labeling.features import FeatureConfig
from ureca.proposals.config import ProposalConfig
from ureca.regions.tree import TreeConfig


@dataclass(frozen=True, kw_only=True)
class WalkConfig:
    """How one image is labeled."""

    limits: ReadLimits = field(default_factory=ReadLimits)
    """What an image may be."""
    tree: TreeConfig = field(default_factory=TreeConfig)
    """How the mask tree is built."""
    proposals: ProposalConfig | None = None
    """Who proposes regions of photos without masks; None: these are set aside."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """By what regions are compared."""
    distractors: DistractorConfig = field(default_factory=DistractorConfig)
    """Which regions count as alike."""
    verify: bool = True
    """Whether each caption is checked against its distractors after it was written."""
    verify_retries: int = 1
    """How often a caption that failed the check is asked for again, with what it was mistaken for."""
    answer_retries: int = 2
    """How often a question is asked again whose answer is of no use."""

    judge_share: float = 0.0
    """Share of the images, held out as training does it, whose captions are judged true or false at the end."""
    judge_seed: int = 0
    """Of the choice of these images; training's `heldout_seed`."""

    def __post_init__(self) -> None:
        if not 0 <= self.judge_share <= 1:
            raise ConfigError(f"judge_share={self.judge_share}: give a share of the images, from 0 to 1")
        for name in ("verify_retries", "answer_retries"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: give 0 or more")

    @classmethod
    def paper(cls, **others: Any) -> "WalkConfig":
        """As the authors' code: its tree, its threshold, all pairs of regions, and no check of what was written.

        Source: URECA (arXiv 2504.05305) section 3; its repository's run_data_pipeline.py.
        """
        return cls(
            tree=TreeConfig.preset("paper"),
            distractors=DistractorConfig(min_similarity=0.8, max_count=20, related=True),
            verify=False,
            verify_retries=0,
            **others,
        )
