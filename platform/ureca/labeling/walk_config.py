"""What can be set of how one image is labeled."""

from dataclasses import dataclass, field

from ureca.corpus.read import ReadLimits
from ureca.errors import ConfigError
from ureca.labeling.distractors import DistractorConfig
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
    distractors: DistractorConfig = field(default_factory=DistractorConfig)
    """Which regions count as alike."""
    verify: bool = True
    """Whether each caption is checked against its distractors after it was written."""
    verify_retries: int = 1
    """How often a caption that failed the check is asked for again, with what it was mistaken for."""
    answer_retries: int = 2
    """How often a question is asked again whose answer is of no use."""

    def __post_init__(self) -> None:
        for name in ("verify_retries", "answer_retries"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: give 0 or more")

    @classmethod
    def paper(cls, *, limits: ReadLimits | None = None, proposals: ProposalConfig | None = None) -> "WalkConfig":
        """As the authors' code: its tree, its threshold, all pairs of regions, and no check of what was written.

        Source: URECA (arXiv 2504.05305) section 3; its repository's run_data_pipeline.py.
        """
        return cls(
            limits=limits or ReadLimits(),
            tree=TreeConfig.preset("paper"),
            proposals=proposals,
            distractors=DistractorConfig(min_similarity=0.8, max_count=20, related=True),
            verify=False,
            verify_retries=0,
        )
