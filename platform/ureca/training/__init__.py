"""Training the captioner: Ray Train starts the workers, DeepSpeed shares out their states.

config.py      what can be set, stage by stage       index.py      which images a step trains on
plan.py        one stage, settled                    examples.py   from the region table to examples
batches.py     the packed batches of each step       loop.py       the workers' side
driver.py      the driver's side
checkpoints.py for going on after an interruption    zero.py       DeepSpeed's settings, learning rate
objective.py   what a step minimizes                 preference.py the same of stage 3, on pairs.py
pretrain.py    nano's base, on questions.py
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ureca.training.config import Stage1Config, Stage2Config, Stage3Config, StageConfig

if TYPE_CHECKING:
    from ureca.training.driver import TrainingResult

__all__ = ["Stage1Config", "Stage2Config", "Stage3Config", "TrainingResult", "fit"]


def fit(config: StageConfig, directory: Path) -> "TrainingResult":
    """Train a stage on Ray, with its files in `directory`: see `ureca.training.driver.fit`."""
    # Ray, torch and transformers take seconds to import: a wrong option is told before that.
    from ureca.training.driver import fit as train

    return train(config, directory)


def __getattr__(name: str) -> Any:
    if name == "TrainingResult":
        from ureca.training.driver import TrainingResult

        return TrainingResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
