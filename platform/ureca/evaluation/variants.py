"""What can be set about an evaluation, and the variants that follow from it."""

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
"""Variant -> how its training told it which region is meant; `shipped` is the captioner of the package."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    table: str
    """Region table with labels: a parquet file or a folder of them, written by label_corpus."""
    heldout: float = 0.1
    """Share of the images that training left out; 1 takes every image of the table."""
    heldout_seed: int = 0
    """The seed of that split; as in training."""
    stage1: str = ""
    """Model directory of stage 1: variant mask_stage1."""
    stage2: str = ""
    """Model directory of stage 2: variant mask_stage2."""
    stage3: str = ""
    """Model directory of stage 3: variant mask_stage3."""
    tuned_none: str = ""
    """Model directory of stage 2 with `cue: none`: variant tuned_none."""
    tuned_box: str = ""
    """Model directory of stage 2 with `cue: box`: variant tuned_box."""
    preset: str = "nano"
    """The base of variants none and box, where no model directory names one."""
    truth: str = ""
    """Folder with ground_truth.jsonl, for drawn scenes whose table does not hold their true attributes."""
    max_new_tokens: int = 96
    """Longest caption, in tokens."""
    seed: int = 0
    """Of the bootstrap."""
    run_directory: str = ""
    """Where the run keeps its files; the same folder again goes on where it was. Empty: runs/evaluate."""

    def __post_init__(self) -> None:
        if not 0 < self.heldout <= 1:
            raise ConfigError(f"heldout={self.heldout}: give the share of images to score, above 0, at most 1.")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens}: must be at least 1.")


def variants_of(config: EvaluateConfig) -> list[Variant]:
    """The base's two variants, and those that a model directory is given for.

    Raises:
        CheckpointError: a folder is no model directory.
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
    """The untuned base, asked about the picture as a whole and about a region's box."""
    load = partial(Captioner.from_base, base, tile_limit=tile_limit)
    model = preset_path(base)
    return [
        Variant(name="none", cue="image", model=model, load=load),
        Variant(name="box", cue="box_question", model=model, load=load),
    ]


def trained_variant(name: str, folder: str, *, seed: int = 0) -> Variant:
    """A model directory or export as the variant `name`, asked in the way in which it was trained."""
    load = partial(Captioner.from_pretrained, folder)
    return Variant(name=name, cue=TRAINED_CUES[name], model=folder, load=load, seed=seed)
