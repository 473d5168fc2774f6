"""What can be set about the demo. The defaults fit two cores and 20 minutes."""

from dataclasses import dataclass

from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    output: str = "runs/demo"
    """Folder of everything the demo makes; the same command again goes on where it was."""
    scenes: int = 560
    """Drawn scenes, those held out included. The six real photos come on top."""
    heldout: float = 0.06
    """Share of the images that training never sees."""
    stage1_epochs: float = 1.0
    stage2_epochs: float = 2.5
    """Passes over the images; `tuned_none`, the control, gets the same."""
    max_tokens: int = 64
    """Longest caption, in tokens."""
    seed: int = 5
    """Of the scenes, the split and training."""

    def __post_init__(self) -> None:
        if self.scenes < 10:
            raise ConfigError(f"scenes={self.scenes}: the demo needs at least 10, to train on some and hold out some")
