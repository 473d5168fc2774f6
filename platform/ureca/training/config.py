"""What can be set about training. The defaults are the paper's where it or its scripts name a value.

Source: URECA (arXiv 2504.05305) appendix A; learning rates, warm-up, decay and LoRA's alpha and dropout from
the authors' training scripts.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from ureca.errors import ConfigError

Cue = Literal["mask", "box", "none"]

STEP_UNITS = ("regions", "tokens", "images")
"""What an optimizer step can be measured in."""
PAPER_BATCH = 16
"""Regions in the paper's batch."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    tokens_per_tile: int | None = None
    """Mask tokens for each mask tile; null takes the preset's."""
    kind: Literal["tokens", "channels"] = "tokens"
    """`tokens` knows tile and place, `channels` is the authors' architecture."""
    projection: Literal["linear", "mlp"] = "linear"
    """Of `channels`, its last part: one layer as in the authors' code, or two as in the paper's text."""
    input_scale: float = 255.0
    """Of `channels`: the value that stands for the region's inside; 255 in the authors' code."""
    location_codes: bool = True
    """Of `tokens`: start the cells' codes as the base's own location tokens, where it has such (nano)."""

    def __post_init__(self) -> None:
        if self.tokens_per_tile is not None and self.tokens_per_tile < 1:
            raise ConfigError(f"mask.tokens_per_tile={self.tokens_per_tile}: must be at least 1, or null.")
        if not (self.input_scale > 0 and math.isfinite(self.input_scale)):
            raise ConfigError(f"mask.input_scale={self.input_scale}: must be a number above 0.")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What an optimizer step holds, over all workers, and how much of it a worker computes at once.

    A step is measured in one of three units. Regions are what the paper counts (its batch is 16 of them). Tokens, the
    image prefix included, are what a step costs: images with 3 or 300 regions then fill it alike, which is what a
    large training wants. Images are for small ones, whose step should show a few scenes whole. A step's loss is the
    mean over all its caption tokens, whatever its unit and however it is cut into passes.
    """

    regions_per_step: int | None = None
    """Regions in an optimizer step. With none of the three given: 16, the paper's."""
    tokens_per_step: int | None = None
    """Tokens in an optimizer step, at most; an image's prefix is counted with it."""
    images_per_step: int | None = None
    """Images in an optimizer step (their visits, where `regions_per_visit` is set)."""
    tokens_per_device: int = 8192
    """Tokens in one forward pass of a worker, at most: what its memory must hold. An image with more regions than fit
    is split over several passes. Changes memory and speed, not the result, but for what LoRA's dropout draws."""
    regions_per_image: int | None = None
    """Regions of an image shown in an epoch; of more, some are drawn anew each time. Null: all of them."""
    regions_per_visit: int | None = None
    """Null: an image's regions come together, which is what packing lives on. A number: in portions of so many at
    different places of the epoch; 1 mixes regions as a batch of separate sequences does."""
    prefetch_steps: int = 1
    """Steps that are read, decoded and packed ahead while the model computes; 0: none."""
    prefetch_threads: int = 1
    """Threads of each worker that do so."""

    def __post_init__(self) -> None:
        for name in ("regions_per_step", "tokens_per_step", "images_per_step", "tokens_per_device"):
            _refuse_below_1(name, getattr(self, name))
        for name in ("regions_per_image", "regions_per_visit", "prefetch_threads"):
            _refuse_below_1(name, getattr(self, name))
        if self.prefetch_steps < 0:
            raise ConfigError(f"batch.prefetch_steps={self.prefetch_steps}: must be 0 (none) or more.")
        given = [f"{unit}_per_step" for unit in STEP_UNITS if getattr(self, f"{unit}_per_step") is not None]
        if len(given) > 1:
            raise ConfigError(
                f"batch: {' and '.join(f'{name}={getattr(self, name)}' for name in given)}: a step is measured in one "
                f"of them. Set the other to null, e.g. --batch.{given[-1]}=null."
            )

    @property
    def step_size(self) -> tuple[str, int]:
        """The unit that a step is measured in (one of STEP_UNITS), and how many of it a step holds."""
        for unit in STEP_UNITS:
            amount = getattr(self, f"{unit}_per_step")
            if amount is not None:
                return unit, amount
        return "regions", PAPER_BATCH


def _refuse_below_1(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"batch.{name}={value}: must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float
    """Peak; rises over the warm-up, then falls to zero along a cosine."""
    epochs: float = 1.0
    """Passes over the images; parts of one are allowed."""
    warmup_share: float = 0.03
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    """Gradients longer than this (L2 norm over all trained weights) are shortened to it."""

    def __post_init__(self) -> None:
        if not self.epochs > 0:
            raise ConfigError(f"optimizer.epochs={self.epochs}: must be above 0.")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ConfigError(f"optimizer.learning_rate={self.learning_rate}: must be a number above 0.")


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    num_workers: int = 2
    """Training processes; with GPUs, one on each."""
    use_gpu: bool = False
    zero_stage: Literal[1, 2, 3] = 1
    """DeepSpeed ZeRO: what the workers share out. 1 optimizer states, 2 gradients too, 3 weights too."""
    offload_optimizer: bool = False
    """Keep the optimizer and the 32-bit weights that train in the machine's memory instead of the GPUs'."""
    offload_weights: bool = False
    """Keep the shared-out weights there too, the frozen base's included, and fetch them layer by layer; `zero_stage` 3
    only. For bases that do not fit the GPUs, and slow."""
    threads: int = 1
    """CPU threads of each worker. On few cores more workers are faster than more threads, and both at once take
    turns so badly that they lose most of the speed."""
    bf16: bool = False
    """Compute in bfloat16; the weights that train, and the optimizer, stay in 32 bit. On CPUs that have AMX or
    AVX512-BF16 it is faster, on others slower."""
    activation_checkpointing: bool = False
    """Keep of each layer of the language model its input alone and compute the rest once more for the gradient: a
    third more work for a fraction of the memory."""
    image_tokens_mb: int = 1024
    """Memory of each worker for image tokens: the vision tower is frozen, so they are computed once and kept while
    they fit. With `zero_stage` 3 they are not kept: its workers must compute alike."""
    max_failures: int = 2
    """Restarts from the latest checkpoint after a worker or its machine died."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"workers.num_workers={self.num_workers}: must be at least 1.")
        if self.threads < 1:
            raise ConfigError(f"workers.threads={self.threads}: must be at least 1.")
        if self.image_tokens_mb < 0:
            raise ConfigError(f"workers.image_tokens_mb={self.image_tokens_mb}: must be 0 (keep none) or more.")
        if self.offload_weights and self.zero_stage < 3:
            raise ConfigError(
                f"workers.offload_weights=true with workers.zero_stage={self.zero_stage}: below stage 3 every worker "
                "holds all weights, so there are no shared-out ones to move. Set --workers.zero_stage=3, or "
                "--workers.offload_weights=false."
            )
        for name in ("offload_optimizer", "offload_weights"):
            if getattr(self, name) and not self.use_gpu:
                raise ConfigError(
                    f"workers.{name}=true with workers.use_gpu=false: no GPU is asked for, so there is no GPU memory "
                    f"to move anything out of. Set --workers.use_gpu=true, or --workers.{name}=false."
                )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 100
    """Steps between checkpoints: what an interruption can cost at most."""
    num_to_keep: int = 2
    """The newest ones that stay. More than one, so that a damaged one has another before it."""
    keep_best: int = 0
    """Instead, the ones of the highest score that stay, beside the last one; the model of the best goes to `model_best`
    in the run's folder. The score is that of evaluation in the loop, so checkpoint steps should be among its steps;
    without scores the newest stay. 0: `num_to_keep` decides."""
    storage: str = ""
    """Folder for the run's checkpoints, local or s3://bucket/folder; empty: the run's folder. With S3 the machines need
    no file system that all of them see: what workers begin with, `init` included, goes there too, and so do metrics,
    notes, looks and trained models, which are fetched at the end. The base alone each machine must have or fetch."""

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.num_to_keep < 1:
            raise ConfigError(
                f"checkpoints.every_steps={self.every_steps}, num_to_keep={self.num_to_keep}: both must be at least 1."
            )
        if self.keep_best < 0:
            raise ConfigError(f"checkpoints.keep_best={self.keep_best}: must be 0 (keep the newest) or more.")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Looking at a training while it runs: held-out images captioned now and then, and where the figures go."""

    every_steps: int = 0
    """Steps between two looks, and one after the last step; 0: none. A look captions the same images every time."""
    images: int = 8
    """Held-out images that are captioned; always the same ones."""
    regions_per_image: int = 8
    """Most regions of each."""
    max_new_tokens: int = 96
    """Longest caption, in tokens."""
    pictures: int = 4
    """Of how many of the images a picture with captions is kept at each look."""
    score: Literal["rouge_l", "attribute_accuracy", "uniqueness"] = "rouge_l"
    """The score by which a checkpoint is better than another. Attribute accuracy needs drawn scenes."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where figures and pictures go besides the run's own files. MLflow and Weights & Biases must be installed, and
    take their addresses and keys from the environment of the driver."""
    peak_tflops: float | None = None
    """What one worker's device can do at most, in 10^12 FLOP/s, for MFU. Null: the GPU's by its name; of a CPU, or a
    GPU that is in no table, measured by a matrix product when training starts."""

    def __post_init__(self) -> None:
        if self.every_steps < 0:
            raise ConfigError(f"eval.every_steps={self.every_steps}: must be 0 (never) or more.")
        for name in ("images", "regions_per_image", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"eval.{name}={getattr(self, name)}: must be at least 1.")
        if self.pictures < 0:
            raise ConfigError(f"eval.pictures={self.pictures}: must be 0 or more.")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise ConfigError(f"eval.peak_tflops={self.peak_tflops}: must be above 0, or null.")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int | None = None
    """Null takes the preset's."""
    alpha: int | None = None
    """Null takes twice the rank."""
    dropout: float = 0.05

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"lora.{name}={value}: must be at least 1, or null.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout}: give a share, 0 or more, below 1.")


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    beta: float = 0.1
    """How dear it is to move away from stage 2's model, against telling the captions apart (DPO's beta); 0.1 is the
    usual value. 0 leaves out the preference: the control that only trains on, with the second term."""
    sft_weight: float = 1.0
    """Of the second term, the cross-entropy of the chosen captions. Chosen and rejected share most of their words here,
    and DPO alone lowers the likelihood of both."""
    label_smoothing: float = 0.0
    """Share of pairs taken to be the wrong way round. Above 0 where labels are noisy, so that some distractor's caption
    is as good."""
    length_normalized: bool = False
    """Take log-probabilities per token, so that long captions don't weigh more; then `beta` wants to be some ten times
    larger. Off: both captions of a pair come from one describer, and differ little in length."""
    rejected_per_region: int = 2
    """Distractors' captions shown against a region's own in one step; of more, some are drawn anew each epoch."""

    def __post_init__(self) -> None:
        for name in ("beta", "sft_weight"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ConfigError(f"preference.{name}={value}: give a number, 0 or more.")
        if not self.beta and not self.sft_weight:
            raise ConfigError("preference.beta=0.0, sft_weight=0.0: nothing is left to train on; set one of them.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"preference.label_smoothing={self.label_smoothing}: give a share, 0 or more, below 0.5 (a coin)."
            )
        if self.rejected_per_region < 1:
            raise ConfigError(f"preference.rejected_per_region={self.rejected_per_region}: must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class _StageConfig:
    table: str
    """Region table to learn from: a parquet file or a folder of them, written by label_corpus."""
    heldout: float = 0.1
    """Share of the table's images, chosen by their ids, that training never sees; jobs/evaluate.py takes them
    with the same two values. 0 trains on everything."""
    heldout_seed: int = 0
    batch: BatchConfig = field(default_factory=BatchConfig)
    preset: str = "nano"
    """Base by name: nano, internvl2.5-1b to -78b, internvl3-1b to -78b (docs/bases.md)."""
    base: str | None = None
    """Folder or hub name of another HF-native InternVL in place of the preset's. Every machine loads it for itself: a
    folder must lie at the same path on each of them; s3:// is refused."""
    tile_limit: int | None = None
    """Most tiles an image is cut into, the thumbnail not counted; null takes the preset's (6; nano's 1), after stage 1
    that of `init`. It is part of the trained model's configuration."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0
    """Of the mask encoder's and LoRA's first weights, the order of images, and every draw."""
    run_directory: str = ""
    """Where the run keeps its files; the same folder again goes on where it was. Empty: runs/<job>.
    Workers write there too: with several machines it must be on a file system that all of them see, unless
    `checkpoints.storage` is in S3."""

    def __post_init__(self) -> None:
        if "://" in (self.base or ""):
            raise ConfigError(
                f"base={self.base}: every machine loads the base for itself, by its hub name or from a folder. Copy it "
                "to the same path on each of them, or into a file system that all of them see, and give that path."
            )
        if not 0 <= self.heldout < 1:
            raise ConfigError(f"heldout={self.heldout}: give the share of images to leave out, 0 or more, below 1.")
        if self.eval.every_steps and not self.heldout:
            raise ConfigError(
                f"eval.every_steps={self.eval.every_steps} with heldout=0: looks caption held-out images. "
                "Hold some out, or set --eval.every_steps=0."
            )


@dataclass(frozen=True, kw_only=True)
class Stage1Config(_StageConfig):
    """Stage 1: the mask encoder learns, everything else is frozen."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """The mask encoder to train."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-4))


@dataclass(frozen=True, kw_only=True)
class Stage2Config(_StageConfig):
    """Stage 2: LoRA on the language model learns; the mask encoder is frozen unless told otherwise."""

    init: str = ""
    """Model directory of stage 1, local or s3://bucket/folder. Only with `cue: mask` it is needed."""
    tokens_per_tile: int | None = None
    """Mask tokens for each mask tile that `init` must have been trained with; null takes what it has."""
    cue: Cue = "mask"
    """The controls: `box`, the same training told the region's box in words; `none`, without any sign of which region
    is meant."""
    tune_mask_encoder: bool = False
    """Let the mask encoder learn on. The paper freezes it. Without masks (`cue` box or none) it never learns."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=4e-5))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cue == "mask" and not self.init:
            raise ConfigError(
                "init is missing: stage 2 starts from stage 1's model directory. "
                "Run jobs/train_stage1.py and give its runs/train_stage1/model with --init."
            )


@dataclass(frozen=True, kw_only=True)
class Stage3Config(_StageConfig):
    """Stage 3, beyond the paper: stage 2's LoRA learns to prefer a region's caption over its distractors'."""

    init: str = ""
    """Model directory of stage 2, local or s3://bucket/folder: where training starts, and what it is measured
    against."""
    tokens_per_tile: int | None = None
    """Mask tokens for each mask tile that `init` must have been trained with; null takes what it has."""
    tune_mask_encoder: bool = False
    """Let the mask encoder learn on too."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=5e-6))
    """Its learning rate is an eighth of stage 2's: a pair asks for a small change of a model that is right already."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.init:
            raise ConfigError(
                "init is missing: stage 3 starts from stage 2's model directory. "
                "Run jobs/train_stage2.py and give its runs/train_stage2/model with --init."
            )


StageConfig = Stage1Config | Stage2Config | Stage3Config
