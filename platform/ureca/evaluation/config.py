"""Configuration of an evaluation job."""

from dataclasses import dataclass
from typing import Literal

from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    table: str
    """Labeled region table: a parquet file or a folder of them, written by label_corpus."""
    heldout: float = 0.1
    """Fraction of the images held out from training; 1 evaluates every image of the table."""
    heldout_seed: int = 0
    """Seed of that split; as in training."""
    stage1: str = ""
    """Model directory of stage 1 (variant mask_stage1)."""
    stage2: str = ""
    """Model directory of stage 2 (variant mask_stage2)."""
    stage3: str = ""
    """Model directory of stage 3 (variant mask_stage3)."""
    tuned_none: str = ""
    """Model directory of stage 2 with `cue: none` (variant tuned_none)."""
    tuned_box: str = ""
    """Model directory of stage 2 with `cue: box` (variant tuned_box)."""
    preset: str = "nano"
    """Base of the variants none and box if no model directory names one."""
    truth: str = ""
    """Folder with ground_truth.jsonl, for synthetic scenes whose table lacks their true attributes."""
    max_new_tokens: int = 96
    """Maximum caption length in tokens."""
    device: str = ""
    """cpu, cuda or cuda:1. Empty: a GPU if there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the models. auto: float32 on CPUs, bfloat16 on GPUs."""
    seed: int = 0
    """Seed of the bootstrap."""
    run_directory: str = ""
    """Run folder; using it again resumes. Empty: runs/evaluate."""

    def __post_init__(self) -> None:
        if not 0 < self.heldout <= 1:
            raise ConfigError(f"heldout={self.heldout}: give a fraction above 0 and at most 1.")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens}: must be at least 1.")
