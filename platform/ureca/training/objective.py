"""What a training step minimizes: the cross-entropy of the captions here, preferences in preference.py.

The loop asks an objective twice: once what it counts in each batch of the step, then, with the counts summed over all
passes and workers, for each pass's share of the step's loss. Shares add up to the loss of the step however it was cut.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from ureca.model import PackedBatch
from ureca.model.packing import IGNORED

__all__ = ["CaptionLoss", "Objective"]


class Objective(Protocol):
    def counts(self, batch: PackedBatch) -> dict[str, float]:
        """What the step's loss is normalized by, and what its metrics report; `tokens` and `regions` among them."""
        ...

    def loss(self, engine: Any, batch: PackedBatch, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """A pass's share of the step's loss, a scalar to go backward from, and of further metrics by name.

        `engine` runs the captioner forward; `counts` are those of the whole step.
        """
        ...


class CaptionLoss:
    """Mean cross-entropy over all caption tokens of the step, in nats."""

    def counts(self, batch: PackedBatch) -> dict[str, float]:
        return {"tokens": float((batch.labels != IGNORED).sum()), "regions": float(batch.num_regions)}

    def loss(self, engine: Any, batch: PackedBatch, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        loss_sum, _ = engine(batch)
        return loss_sum / counts["tokens"], {}
