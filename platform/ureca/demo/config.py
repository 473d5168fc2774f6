"""Settings of the demo. The defaults fit two cores and 20 minutes."""

from dataclasses import dataclass

from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    output: str = "runs/demo"
    """Folder of all results; running again with the same folder resumes."""
    scenes: int = 560
    """Synthetic scenes, including held-out ones. Six real photos are added."""
    heldout: float = 0.06
    """Fraction of the images held out from training."""
    stage1_epochs: float = 1.0
    stage2_epochs: float = 2.5
    """Epochs of stage 2 and of its control `tuned_none`."""
    max_tokens: int = 64
    """Maximum caption length in tokens."""
    seed: int = 5
    """Seed of the scenes, the split and training."""

    def __post_init__(self) -> None:
        if self.scenes < 10:
            raise ConfigError(f"scenes={self.scenes}: the demo needs at least 10, to train on some and hold out some")
