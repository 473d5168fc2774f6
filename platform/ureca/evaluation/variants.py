"""Settings of an evaluation, and the variants that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ureca.errors import ConfigError
from ureca.evaluation.predictions import Variant
from ureca.model.captioner import Captioner, CaptionerConfig
from ureca.model.internvl.presets import preset, preset_path
from ureca.model.processor import Cue

TRAINED_CUES: dict[str, Cue] = {
    "tuned_none": "none",
    "tuned_box": "box",
    "mask_stage1": "mask",
    "mask_stage2": "mask",
    "mask_stage3": "mask",
    "mask_longer": "mask",
    "shipped": "mask",
}
"""Variant -> region cue of its training; `shipped` is the captioner in the package."""


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
    seed: int = 0
    """Seed of the bootstrap."""
    run_directory: str = ""
    """Run folder; using it again resumes. Empty: runs/evaluate."""

    def __post_init__(self) -> None:
        if not 0 < self.heldout <= 1:
            raise ConfigError(f"heldout={self.heldout}: give a fraction above 0 and at most 1.")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens}: must be at least 1.")


def variants_of(config: EvaluateConfig) -> list[Variant]:
    """Return the base's two variants, and those with a model directory.

    Raises:
        CheckpointError: a folder is not a model directory.
        ConfigError: an unknown preset.
    """
    trained = {
        "tuned_none": config.tuned_none,
        "tuned_box": config.tuned_box,
        "mask_stage1": config.stage1,
        "mask_stage2": config.stage2,
        "mask_stage3": config.stage3,
    }
    given = {name: folder for name, folder in trained.items() if folder}
    settings = [CaptionerConfig.load(Path(folder)) for folder in given.values()]
    known = preset(config.preset)
    base, tile_limit = (settings[0].base, settings[0].tile_limit) if settings else (known.base, known.tile_limit)
    return [*base_variants(base, tile_limit), *(trained_variant(name, folder) for name, folder in given.items())]


def base_variants(base: str, tile_limit: int) -> list[Variant]:
    """Return variants of the untuned base, asked about the whole image and about a region's box."""
    load = partial(Captioner.from_base, base, tile_limit=tile_limit)
    model = preset_path(base)
    return [
        Variant(name="none", cue="image", model=model, load=load),
        Variant(name="box", cue="box_question", model=model, load=load),
    ]


def trained_variant(name: str, folder: str, *, seed: int = 0) -> Variant:
    """Return a model directory or export as the variant `name`, with the region cue of its training."""
    load = partial(Captioner.from_pretrained, folder)
    return Variant(name=name, cue=TRAINED_CUES[name], model=folder, load=load, seed=seed)
