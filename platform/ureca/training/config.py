"""Configuration of the training stages. Defaults are the paper's where the paper or its scripts state a value.

Source: URECA (arXiv 2504.05305) appendix A; learning rates, warm-up, decay, LoRA alpha and dropout: the authors'
training scripts.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from ureca.errors import ConfigError

Cue = Literal["mask", "box", "none"]

STEP_UNITS = ("regions", "tokens", "images")
"""Units that can measure an optimizer step."""
PAPER_BATCH = 16
"""Regions in the paper's batch."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Mask encoder to train in stage 1."""

    tokens_per_tile: int | None = None
    """Mask tokens per mask tile. Null: the preset's."""
    kind: Literal["tokens", "channels"] = "tokens"
    """Architecture: `tokens` encodes tile and location, `channels` is the authors' encoder."""
    projection: Literal["linear", "mlp"] = "linear"
    """Last layer of `channels`: `linear` as in the authors' code, `mlp` as in the paper's text."""
    input_scale: float = 255.0
    """Input value of pixels inside the region, `channels` only. The authors' code uses 255."""
    location_codes: bool = True
    """Initialize the cell codes of `tokens` from the base's location tokens, if it has any (nano)."""

    def __post_init__(self) -> None:
        if self.tokens_per_tile is not None and self.tokens_per_tile < 1:
            raise ConfigError(f"mask.tokens_per_tile={self.tokens_per_tile}: must be at least 1, or null.")
        if not (self.input_scale > 0 and math.isfinite(self.input_scale)):
            raise ConfigError(f"mask.input_scale={self.input_scale}: must be a number above 0.")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Size of an optimizer step over all workers, and of a worker's microbatch.

    A step is measured in one of three units. Regions: the paper's unit (its batch is 16 regions). Tokens, image prefix
    included: the actual cost, so images with 3 or 300 regions fill a step alike; best for large runs. Images: for small
    runs, where a step should hold a few complete scenes. The loss of a step is the mean over all its caption tokens,
    for every unit and every split into microbatches.
    """

    regions_per_step: int | None = None
    """Regions per optimizer step. If none of the three units is set: 16, the paper's batch."""
    tokens_per_step: int | None = None
    """Maximum tokens per optimizer step, image prefixes included."""
    images_per_step: int | None = None
    """Images per optimizer step; with `regions_per_visit`, chunks of images."""
    tokens_per_device: int = 8192
    """Maximum tokens per microbatch: what a worker's memory must hold. Larger images are split over microbatches.
    Changes memory and speed; the result changes only through LoRA dropout."""
    regions_per_image: int | None = None
    """Maximum regions of an image per epoch; above that, a new random subset each epoch. Null: all regions."""
    regions_per_visit: int | None = None
    """Null: pack all regions of an image together (fastest). N: split them into chunks of N, spread over the epoch;
    1 mixes regions like a batch of separate sequences."""
    prefetch_steps: int = 1
    """Steps to read, decode and pack ahead while the model computes. 0: no prefetching."""
    prefetch_threads: int = 1
    """Prefetching threads per worker."""

    def __post_init__(self) -> None:
        for name in ("regions_per_step", "tokens_per_step", "images_per_step", "tokens_per_device"):
            _refuse_below_1(name, getattr(self, name))
        for name in ("regions_per_image", "regions_per_visit", "prefetch_threads"):
            _refuse_below_1(name, getattr(self, name))
        if self.prefetch_steps < 0:
            raise ConfigError(f"batch.prefetch_steps={self.prefetch_steps}: must be 0 (no prefetching) or more.")
        given = [f"{unit}_per_step" for unit in STEP_UNITS if getattr(self, f"{unit}_per_step") is not None]
        if len(given) > 1:
            raise ConfigError(
                f"batch: {' and '.join(f'{name}={getattr(self, name)}' for name in given)}: only one of these may "
                f"measure a step. Set the others to null, e.g. --batch.{given[-1]}=null."
            )

    @property
    def step_size(self) -> tuple[str, int]:
        """Unit of a step (one of STEP_UNITS) and its size in that unit."""
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
    """AdamW and its learning-rate schedule."""

    learning_rate: float
    """Peak learning rate: linear warm-up to it, then cosine decay to zero."""
    epochs: float = 1.0
    """Passes over the images; fractions are allowed."""
    warmup_share: float = 0.03
    """Share of the steps used for warm-up."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    clip_norm: float = 1.0
    """Maximum L2 norm of the gradient over all trained weights; larger gradients are clipped."""

    def __post_init__(self) -> None:
        if not self.epochs > 0:
            raise ConfigError(f"optimizer.epochs={self.epochs}: must be above 0.")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ConfigError(f"optimizer.learning_rate={self.learning_rate}: must be a number above 0.")


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Training processes, their devices, and how memory is divided among them."""

    num_workers: int = 2
    """Training processes; with GPUs, one per GPU."""
    use_gpu: bool = False
    """Train on GPUs."""
    zero_stage: Literal[1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 1 partitions optimizer states, 2 also gradients, 3 also weights."""
    offload_optimizer: bool = False
    """Keep the optimizer and the trained 32-bit weights in host memory. Needs GPUs."""
    offload_weights: bool = False
    """Keep all partitioned weights, the frozen base included, in host memory and fetch them layer by layer. For bases
    that exceed GPU memory; slow. Needs `zero_stage` 3."""
    threads: int = 1
    """CPU threads per worker. On few cores, more workers are faster than more threads; both together are slowest."""
    bf16: bool = False
    """Compute in bfloat16; trained weights and optimizer stay in 32 bit. Faster on GPUs and on CPUs with AMX or
    AVX512-BF16, slower on other CPUs."""
    activation_checkpointing: bool = False
    """Recompute language-model activations in the backward pass: a third more compute, a fraction of the memory."""
    image_cache_mb: int = 1024
    """Memory per worker for cached image features (the vision tower is frozen). 0: no cache. Unused with
    `zero_stage` 3, whose workers must run the vision tower together."""
    max_failures: int = 2
    """Restarts from the latest checkpoint after a worker or its machine failed."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"workers.num_workers={self.num_workers}: must be at least 1.")
        if self.threads < 1:
            raise ConfigError(f"workers.threads={self.threads}: must be at least 1.")
        if self.image_cache_mb < 0:
            raise ConfigError(f"workers.image_cache_mb={self.image_cache_mb}: must be 0 (no cache) or more.")
        if self.offload_weights and self.zero_stage < 3:
            raise ConfigError(
                f"workers.offload_weights=true with workers.zero_stage={self.zero_stage}: only stage 3 partitions "
                "weights, so there are none to offload. Set --workers.zero_stage=3, or "
                "--workers.offload_weights=false."
            )
        for name in ("offload_optimizer", "offload_weights"):
            if getattr(self, name) and not self.use_gpu:
                raise ConfigError(
                    f"workers.{name}=true with workers.use_gpu=false: offloading moves data out of GPU memory. "
                    f"Set --workers.use_gpu=true, or --workers.{name}=false."
                )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoint frequency, retention and location."""

    every_steps: int = 100
    """Steps between checkpoints: the most that an interruption costs."""
    num_to_keep: int = 2
    """Newest checkpoints to keep. With more than one, a damaged checkpoint has a predecessor to resume from."""
    keep_best: int = 0
    """Checkpoints with the highest in-loop score to keep, plus the last one; the model of the best is written to
    `model_best`. Checkpoint and evaluation steps should coincide. 0: keep the newest `num_to_keep`."""
    storage: str = ""
    """Folder for checkpoints, local or s3://bucket/folder. Empty: the run's folder. With S3, machines need no shared
    file system: inputs, metrics, evaluations and models are synced through S3; only the base must exist on each."""

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.num_to_keep < 1:
            raise ConfigError(
                f"checkpoints.every_steps={self.every_steps}, num_to_keep={self.num_to_keep}: both must be at least 1."
            )
        if self.keep_best < 0:
            raise ConfigError(f"checkpoints.keep_best={self.keep_best}: must be 0 (keep the newest) or more.")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """In-loop evaluation on held-out images, and experiment trackers."""

    every_steps: int = 0
    """Steps between evaluations; another one follows the last step. 0: no in-loop evaluation."""
    images: int = 8
    """Held-out images to caption, the same ones in every evaluation."""
    regions_per_image: int = 8
    """Maximum regions to caption per image."""
    max_new_tokens: int = 96
    """Maximum caption length in tokens."""
    pictures: int = 4
    """Images to save with their captions drawn in, per evaluation."""
    score: Literal["rouge_l", "attribute_accuracy", "uniqueness"] = "rouge_l"
    """Score that ranks checkpoints. `attribute_accuracy` needs drawn scenes."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Experiment trackers to log to. MLflow and Weights & Biases must be installed; they read addresses and keys from
    the driver's environment."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of one worker's device, for MFU. Null: from the GPU's name, or measured with a matrix product on
    CPUs and unknown GPUs."""

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
    """LoRA adapter of the language model."""

    rank: int | None = None
    """LoRA rank. Null: the preset's."""
    alpha: int | None = None
    """LoRA alpha. Null: twice the rank."""
    dropout: float = 0.05
    """LoRA dropout."""

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"lora.{name}={value}: must be at least 1, or null.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout}: must be at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Stage 3's objective: DPO plus cross-entropy of the chosen captions."""

    beta: float = 0.1
    """DPO beta: weight of the KL penalty towards the stage-2 reference model. 0: no preference term, a control that
    only continues supervised training."""
    sft_weight: float = 1.0
    """Weight of the chosen captions' cross-entropy. Chosen and rejected captions share most words here, and DPO alone
    lowers the likelihood of both."""
    label_smoothing: float = 0.0
    """Assumed share of pairs with swapped labels. Raise it for noisy labels, where a distractor's caption may fit."""
    length_normalized: bool = False
    """Use log-probabilities per token, so that long captions do not weigh more; then raise `beta` about tenfold. Off:
    both captions of a pair come from one describer and have similar lengths."""
    rejected_per_region: int = 2
    """Maximum rejected captions per region and step; above that, a new random subset each epoch."""

    def __post_init__(self) -> None:
        for name in ("beta", "sft_weight"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ConfigError(f"preference.{name}={value}: must be a number, 0 or more.")
        if not self.beta and not self.sft_weight:
            raise ConfigError("preference.beta=0.0, sft_weight=0.0: the loss is empty; set one of them above 0.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"preference.label_smoothing={self.label_smoothing}: must be at least 0 and below 0.5.")
        if self.rejected_per_region < 1:
            raise ConfigError(f"preference.rejected_per_region={self.rejected_per_region}: must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class _StageConfig:
    """Fields that all stages share."""

    table: str
    """Region table to train on: a parquet file or a folder of them, as label_corpus writes it."""
    heldout: float = 0.1
    """Share of the images, chosen by id, that training never sees; evaluate uses the same two values. 0: train on
    all."""
    heldout_seed: int = 0
    """Seed of the held-out split."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    preset: str = "nano"
    """Base by name: nano, internvl2.5-1b to -78b, internvl3-1b to -78b (docs/bases.md)."""
    base: str | None = None
    """HF-native InternVL in place of the preset's: a hub name, or a folder at the same path on every machine. s3://
    is refused."""
    tile_limit: int | None = None
    """Maximum tiles per image, thumbnail not counted; part of the trained model's configuration. Null: the preset's (6;
    nano: 1), after stage 1 that of `init`."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0
    """Seed of initial weights, image order and every random draw."""
    run_directory: str = ""
    """Folder of the run; starting again with the same folder resumes it. Empty: runs/<job>. With several machines it
    must be on a shared file system, unless `checkpoints.storage` is in S3."""

    def __post_init__(self) -> None:
        if "://" in (self.base or ""):
            raise ConfigError(
                f"base={self.base}: every machine loads the base by its hub name or from a folder. Copy it to the same "
                "path on each machine, or to a shared file system, and give that path."
            )
        if not 0 <= self.heldout < 1:
            raise ConfigError(f"heldout={self.heldout}: must be at least 0 and below 1.")
        if self.eval.every_steps and not self.heldout:
            raise ConfigError(
                f"eval.every_steps={self.eval.every_steps} with heldout=0: in-loop evaluation needs held-out images. "
                "Raise --heldout, or set --eval.every_steps=0."
            )


@dataclass(frozen=True, kw_only=True)
class Stage1Config(_StageConfig):
    """Stage 1: train the mask encoder; everything else is frozen."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-4))


@dataclass(frozen=True, kw_only=True)
class Stage2Config(_StageConfig):
    """Stage 2: train LoRA on the language model; the mask encoder is frozen by default."""

    init: str = ""
    """Model directory of stage 1, local or s3://bucket/folder. Required with `cue` mask."""
    tokens_per_tile: int | None = None
    """Mask tokens per mask tile that `init` must have. Null: any."""
    cue: Cue = "mask"
    """Cue for the region. Controls: `box` gives the box as text, `none` gives no cue at all."""
    tune_mask_encoder: bool = False
    """Also train the mask encoder. The paper freezes it. Has no effect with `cue` box or none."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=4e-5))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cue == "mask" and not self.init:
            raise ConfigError(
                "init is missing: stage 2 starts from stage 1's model directory. "
                "Run jobs/train_stage1.py and set --init to its runs/train_stage1/model."
            )


@dataclass(frozen=True, kw_only=True)
class Stage3Config(_StageConfig):
    """Stage 3, beyond the paper: tune stage 2's LoRA to prefer a region's caption over its distractors'."""

    init: str = ""
    """Model directory of stage 2, local or s3://bucket/folder: start of training, and the reference model."""
    tokens_per_tile: int | None = None
    """Mask tokens per mask tile that `init` must have. Null: any."""
    tune_mask_encoder: bool = False
    """Also train the mask encoder."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=5e-6))
    """The learning rate is an eighth of stage 2's: a pair asks for a small change of a model that already works."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.init:
            raise ConfigError(
                "init is missing: stage 3 starts from stage 2's model directory. "
                "Run jobs/train_stage2.py and set --init to its runs/train_stage2/model."
            )


StageConfig = Stage1Config | Stage2Config | Stage3Config
