"""What can be set of a labeling job."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ureca.corpus.read import ReadLimits
from ureca.errors import ConfigError
from ureca.labeling.describers.openai import ChatConfig
from ureca.labeling.describers.vllm import VllmConfig
from ureca.labeling.distractors import DistractorConfig
from ureca.labeling.features import FeatureConfig
from ureca.pipeline.usage import PriceConfig
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


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """A corpus to label, and how."""

    sources: tuple[str, ...]
    """Images and masks, local or s3://: folders of NAME.jpg with NAME.json (SA-1B) or PNG masks, tar shards, COCO,
    LVIS and panoptic annotation files; docs/corpora.md has all kinds."""
    run_directory: str = ""
    """Local folder of this run; empty: runs/label_corpus."""
    table: str = ""
    """The region table to write, one parquet file (local or s3://); empty: regions.parquet in the run's
    folder. Every machine of the cluster must reach it."""
    overwrite: bool = False
    """Delete what an earlier start with other settings has labeled; else such a start is refused."""
    dry_run: bool = False
    """Print what the job would start, write, ask and cost, and stop."""
    preset: Literal["default", "paper"] = "default"
    """paper: the authors' own tree, threshold, prompts and order of calls, and no check of what was written."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What an image may be."""
    tree: str = "default"
    """Preset of the mask tree: default, or paper (as its code: first fit, four levels, 0.7 to 70 %)."""
    proposals: ProposalConfig | None = None
    """Who proposes regions of photos without masks (--proposals.kind=segments or sam); null: they are set aside."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """By what regions are compared to find which are alike."""
    distractors: DistractorConfig = field(default_factory=DistractorConfig)
    """Which regions of an image a caption may be taken for."""
    verify_retries: int = 1
    """How often a caption that is mistaken for another region is asked for again before it is flagged."""
    answer_retries: int = 2
    """How often a question is asked again whose answer is of no use."""
    judge_share: float = 0.0
    """Share of the images, held out as training and evaluation hold out theirs, for a test set: each of their captions
    is judged true or false by the describer in the end, and what is not judged true is flagged `judged_false`."""
    judge_seed: int = 0
    """Of the choice of these images: the `heldout_seed` of training and evaluation."""
    describer: Literal["attributes", "chat", "vllm"] = "attributes"
    """Who writes the captions. attributes measures pixels and masks and needs no model; chat asks an
    OpenAI-compatible endpoint; vllm runs a model in each of the job's processes."""
    prompts: str = ""
    """The questions to a model: default, paper, or a folder of your own; empty: those of the preset."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """For describer chat."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    """For describer vllm."""
    actors: int = 0
    """Processes that label; 0: as many as GPUs allow, or one per CPU of the cluster, less two to read and write."""
    gpus_per_actor: float = 0.0
    """GPUs that each process holds, for models that propose regions or compare looks; describer vllm has its own."""
    images_in_flight: int = 32
    """Images that one process works on at once. Each takes its pixels in memory; more keep a slow endpoint busier."""
    images_per_block: int = 4
    """Images that are finished, written and, after an interruption, kept together; a block becomes two small files."""
    crash_attempts: int = 2
    """How often the process of an image must die while it is alone in it until the image is set aside."""
    prices: PriceConfig = field(default_factory=PriceConfig)
    """For the account at the end."""
    project_images: int = 0
    """For how many images the account is to say what they would take; 0: none."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources is empty: give the folders that hold the photos and their JSON files")
        least = {"verify_retries": 0, "answer_retries": 0, "actors": 0, "gpus_per_actor": 0, "images_in_flight": 1}
        least |= {"images_per_block": 1, "crash_attempts": 1, "project_images": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name}={getattr(self, name)}: give {minimum} or more")
        if self.table and not self.table.endswith(".parquet"):
            raise ConfigError(f"table={self.table}: give the name of a .parquet file")
        if self.judge_share and self.describer == "attributes":
            raise ConfigError(f"judge_share={self.judge_share}: describer attributes can't judge; give chat or vllm")
        if self.describer == "vllm" and self.gpus_per_actor:
            raise ConfigError("gpus_per_actor is for other describers: give vllm.tensor_parallel_size instead")
        TreeConfig.preset(self.tree)
        if self.preset == "paper" and (self.tree != "default" or self.distractors != DistractorConfig()):
            raise ConfigError("preset=paper has its own tree and distractors: leave these out, or the preset")

    def walk(self) -> WalkConfig:
        """How each image is labeled."""
        common: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("limits", "proposals", "features", "answer_retries", "judge_share", "judge_seed")
        }
        if self.preset == "paper":
            return WalkConfig.paper(**common)
        return WalkConfig(
            tree=TreeConfig.preset(self.tree),
            distractors=self.distractors,
            verify_retries=self.verify_retries,
            **common,
        )
