"""Training the captioner: Ray Train starts the workers, DeepSpeed shares out their states.

config.py      what can be set, stage by stage       table_index.py what is known of a table before the first step
settle.py      what a preset decides, filled in
plan.py        one stage, settled                    index.py       which regions a step trains on
driver.py      the driver's side                     passes.py      their cut into passes and shares of workers
loop.py        the workers' side                     batches.py     the packed batches of each step, made ahead
checkpoints.py for going on after an interruption    zero.py        DeepSpeed's settings, learning rate
objective.py   what a step minimizes                 preference.py  the same of stage 3, on pairs.py
pretrain.py    nano's base, on questions.py
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ureca.training.config import Stage1Config, Stage2Config, Stage3Config, StageConfig

if TYPE_CHECKING:
    from ureca.training.driver import TrainingResult

__all__ = ["Stage1Config", "Stage2Config", "Stage3Config", "TrainingResult", "fit", "settled"]

T = TypeVar("T", bound=StageConfig)


def fit(config: StageConfig, directory: Path) -> "TrainingResult":
    """Train a stage on Ray, with its files in `directory`: see `ureca.training.driver.fit`."""
    # Ray, torch and transformers take seconds to import: a wrong option is told before that.
    from ureca.training.driver import fit as train

    return train(config, directory)


def settled(config: T) -> T:
    """The configuration with nothing left to a preset: see `ureca.training.settle.settled`."""
    from ureca.training.settle import settled as settle

    return settle(config)


def __getattr__(name: str) -> Any:
    if name == "TrainingResult":
        from ureca.training.driver import TrainingResult

        return TrainingResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
