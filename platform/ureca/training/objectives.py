"""What a training step minimizes: the cross-entropy of the captions here, preferences in preference.py.

The loop asks an objective twice: once what it counts in each batch of the step, then, with the counts summed over all
passes and workers, for each pass's share of the step's loss. Shares add up to the loss of the step however it was cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ureca.model.packing import IGNORED, PackedBatch
from ureca.model.reference import as_reference
from ureca.training.config import PreferenceConfig


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


def preference_losses(
    policy: Tensor, reference: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Loss and margin of each pair, `(K,)`, from log-probabilities `(K, 2)`: chosen, rejected; in nats.

    `label_smoothing`: the share of pairs taken to be the wrong way round.
    """
    gained = policy - reference
    margins = gained[:, 0] - gained[:, 1]
    losses = -(1 - label_smoothing) * logsigmoid(beta * margins) - label_smoothing * logsigmoid(-beta * margins)
    return losses, margins


@dataclass(frozen=True)
class PreferenceLoss(CaptionLoss):
    config: PreferenceConfig

    def counts(self, batch: PackedBatch) -> dict[str, float]:
        of_chosen = torch.isin(batch.branch, batch.pairs[:, 0]) & (batch.labels != IGNORED)
        return {
            **super().counts(batch),
            "pairs": float(len(batch.pairs)),
            "chosen_tokens": float(of_chosen.sum()),
        }

    def loss(self, engine: Any, batch: PackedBatch, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Further metrics: both terms, and of the pairs the share whose margin is above 0 (`preference_accuracy`), the
        share whose own caption is the likelier one (`ranking_accuracy`), and the mean margin in nats."""
        settings, pairs, num_pairs = self.config, batch.pairs, counts["pairs"]
        with as_reference(engine.module):
            before, _ = engine.module(batch, by_branch=True)
        losses, tokens = engine(batch, by_branch=True)
        lengths = tokens if settings.length_normalized else torch.ones_like(tokens)
        policy, reference = -(losses / lengths)[pairs], -(before / lengths)[pairs]
        pair_losses, margins = preference_losses(
            policy, reference, beta=settings.beta, label_smoothing=settings.label_smoothing
        )
        preference = pair_losses.sum() / num_pairs
        sft = losses[pairs[:, 0].unique()].sum() / counts["chosen_tokens"]
        figures = {
            "preference_loss": preference,
            "sft_loss": sft,
            "preference_accuracy": (margins > 0).to(margins).sum() / num_pairs,
            "ranking_accuracy": (policy[:, 0] > policy[:, 1]).to(margins).sum() / num_pairs,
            "margin": margins.sum() / num_pairs,
        }
        return preference + settings.sft_weight * sft, {name: value.detach() for name, value in figures.items()}
