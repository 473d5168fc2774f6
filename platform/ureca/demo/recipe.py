"""How the shipped nano is made: stages 1 and 2 and both controls, for several seeds, on one corpus.

    OUTPUT/seed0/stage1/model        the mask encoder trained
                 stage2/model        and LoRA: the captioner
                 tuned_none/model    the same LoRA training, no sign of the region
                 tuned_box/model     the same, the region's box in words
           seed1/...

All four of a seed have the same settings, steps and order of images; what differs is what the model is told of the
region.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ureca.config import config_from_dict, find_config, read_config
from ureca.errors import ConfigError
from ureca.training import Stage1Config, Stage2Config, TrainingResult, fit

__all__ = ["HELDOUT_PHOTOS", "NanoRecipeConfig", "stage_config", "train_seed"]

HELDOUT_PHOTOS = ("astronaut", "coffee")
"""Photos of the package that the shipped captioner never learned from: those that the demo holds out."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NanoRecipeConfig:
    output: str = "runs/nano_recipe"
    """Folder of everything; the same command again goes on where it was."""
    scenes: int = 3000
    """Drawn scenes to learn from. Four of the package's six photos come on top."""
    corpus_seed: int = 21
    """Of the drawn scenes."""
    table: str = ""
    """A region table to learn from in place of drawn and labeled scenes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A whole training for each: first weights, order of images, every draw."""
    stage1: str = "nano_stage1"
    """Settings of stage 1: a YAML file, or the name of one in jobs/configs."""
    stage2: str = "nano_stage2"
    """Settings of stage 2 and of the two controls."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={list(self.seeds)}: give one seed or more, each once.")
        if self.scenes < 1:
            raise ConfigError(f"scenes={self.scenes}: must be at least 1.")


def train_seed(config: NanoRecipeConfig, seed: int, *, table: str, output: Path) -> dict[str, TrainingResult]:
    """Train the four models of a seed below `output`; what is there already is left as it is.

    Raises:
        ConfigError: a recipe of a stage does not load.
        TrainingError, CheckpointError, InputError: as `ureca.training.fit`.
    """
    common: dict[str, Any] = {"table": table, "heldout": 0.0, "seed": seed}
    stage1 = stage_config(Stage1Config, config.stage1, **common)
    trained = {"stage1": fit(stage1, output / "stage1")}
    controls: dict[str, dict[str, Any]] = {
        "stage2": {"init": trained["stage1"].model},
        "tuned_none": {"init": "", "cue": "none"},
        "tuned_box": {"init": "", "cue": "box"},
    }
    for name, told in controls.items():
        trained[name] = fit(stage_config(Stage2Config, config.stage2, **common, **told), output / name)
    return trained


def stage_config(cls: type[T], recipe: str, *, epochs: float | None = None, **given: Any) -> T:
    """The configuration of a recipe (a YAML file, or the name of one) with some of its settings replaced."""
    path = find_config(recipe)
    settings = {**read_config(path), **given}
    if epochs is not None:
        settings["optimizer"] = {**settings["optimizer"], "epochs": epochs}
    return config_from_dict(cls, settings, where=path)
