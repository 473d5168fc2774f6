"""Configuration of a labeling job."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ureca.errors import ConfigError
from ureca.labeling.describers.openai_client import ChatConfig
from ureca.labeling.describers.vllm import VllmConfig
from ureca.labeling.distractors import DistractorConfig
from ureca.labeling.features import FeatureConfig
from ureca.pipeline.config import CaptionJobConfig, ImageSettings, check_minimum
from ureca.regions.tree import TreeConfig


@dataclass(frozen=True, kw_only=True)
class LabelSettings(ImageSettings):
    """Labeling of one image."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    """Features that compare regions."""
    distractors: DistractorConfig = field(default_factory=DistractorConfig)
    """Which regions count as distractors."""
    verify: bool = True
    """Check each caption against its distractors after it was written."""
    verify_retries: int = 1
    """Rewrites of a caption that failed the check, naming the region it was mistaken for."""
    answer_retries: int = 2
    """Repetitions of a request whose answer is unusable."""
    judge_share: float = 0.0
    """Share of the images, held out like training's, whose captions are judged true or false at the end."""
    judge_seed: int = 0
    """Seed of the choice of these images; training's `heldout_seed`."""

    def __post_init__(self) -> None:
        if not 0 <= self.judge_share <= 1:
            raise ConfigError(f"judge_share={self.judge_share}: must be between 0 and 1")
        check_minimum(self, {"verify_retries": 0, "answer_retries": 0})

    @classmethod
    def paper(cls, **settings: Any) -> "LabelSettings":
        """Return the settings of the authors' code: its tree, threshold, all pairs of regions, no check of captions.

        Source: URECA (arXiv 2504.05305) section 3; its repository's run_data_pipeline.py.
        """
        return cls(
            tree=TreeConfig.preset("paper"),
            distractors=DistractorConfig(min_similarity=0.8, max_count=20, related=True),
            verify=False,
            verify_retries=0,
            **settings,
        )


@dataclass(frozen=True, kw_only=True)
class LabelConfig(CaptionJobConfig):
    """A corpus to label, and how to label it."""

    dry_run: bool = False
    """Print what the job would start, write, request and cost, and stop."""
    preset: Literal["default", "paper"] = "default"
    """`paper`: the authors' tree, threshold, prompts and order of calls, without a check of captions. Needs DINO
    features: features.kind=dinov2."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """Features that compare regions to find distractors. For photos of real objects use features.kind=dinov2."""
    distractors: DistractorConfig = field(default_factory=DistractorConfig)
    """Which regions of an image count as distractors of a caption."""
    verify_retries: int = 1
    """Rewrites of a caption that fits another region before the region is flagged."""
    answer_retries: int = 2
    """Repetitions of a request whose answer is unusable."""
    judge_share: float = 0.0
    """Share of the images, held out like training's and evaluation's, to use as a test set: the describer judges each
    of their captions, and flags those that are not true `judged_false`."""
    judge_seed: int = 0
    """Seed of the choice of these images: `heldout_seed` of training and evaluation."""
    describer: Literal["attributes", "chat", "vllm"] = "attributes"
    """Source of the captions. attributes: measured from pixels and masks, no model. chat: an OpenAI-compatible
    endpoint. vllm: a model in each worker process."""
    prompts: str = ""
    """Prompt set: default, paper, or a folder of your prompts. Empty: the preset's."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """Options of describer chat."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    """Options of describer vllm."""
    gpus_per_actor: float = 0.0
    """GPUs per worker process, for models that propose or compare regions; describer vllm has its own option."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, {"verify_retries": 0, "answer_retries": 0, "gpus_per_actor": 0})
        if self.judge_share and self.describer == "attributes":
            raise ConfigError(f"judge_share={self.judge_share}: describer attributes can't judge; use chat or vllm")
        if self.describer == "vllm" and self.gpus_per_actor:
            raise ConfigError("gpus_per_actor is for other describers: set vllm.tensor_parallel_size instead")
        if self.preset == "paper" and (self.tree != "default" or self.distractors != DistractorConfig()):
            raise ConfigError("preset=paper has its own tree and distractors: omit tree and distractors, or the preset")
        if self.preset == "paper" and self.features.kind == "measured":
            raise ConfigError(
                "preset=paper compares regions by DINO features at 0.8 similarity: add --features.kind=dinov2 and "
                "--features.model=facebook/dino-vitb16 (the authors' model; a hub name or a folder)"
            )

    def settings(self) -> LabelSettings:
        """Return how each image is labeled."""
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("limits", "proposals", "features", "answer_retries", "judge_share", "judge_seed")
        }
        if self.preset == "paper":
            return LabelSettings.paper(**shared)
        return LabelSettings(
            tree=TreeConfig.preset(self.tree),
            distractors=self.distractors,
            verify_retries=self.verify_retries,
            **shared,
        )
