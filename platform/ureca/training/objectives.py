"""Training objectives: caption cross-entropy (stages 1 and 2) and preference tuning (stage 3).

The worker calls an objective twice per step: `counts` for every microbatch, then, with the counts summed over all
microbatches and workers, `loss` for each microbatch's share. The shares add up to the loss of the step, for every split
into microbatches.
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
    """Loss of a step, computed microbatch by microbatch."""

    def counts(self, batch: PackedBatch) -> dict[str, float]:
        """Return the counts that normalize the step's loss and metrics; `tokens` and `regions` are always included."""
        ...

    def loss(self, engine: Any, batch: PackedBatch, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the microbatch's share of the step's loss (a scalar with gradient) and of further metrics, by name.

        Args:
            engine: runs the captioner's forward.
            counts: sums over the entire step.
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
    """Compute DPO loss and margin of each pair, both `(K,)`, in nats.

    Args:
        policy: `(K, 2)` log-probabilities of chosen and rejected captions under the model in training.
        reference: the same under the reference model.
        beta: DPO beta.
        label_smoothing: assumed share of pairs with swapped labels.
    """
    gained = policy - reference
    margins = gained[:, 0] - gained[:, 1]
    losses = -(1 - label_smoothing) * logsigmoid(beta * margins) - label_smoothing * logsigmoid(-beta * margins)
    return losses, margins


@dataclass(frozen=True)
class PreferenceLoss(CaptionLoss):
    """DPO against the stage-2 reference, plus cross-entropy of the chosen captions."""

    config: PreferenceConfig

    def counts(self, batch: PackedBatch) -> dict[str, float]:
        of_chosen = torch.isin(batch.branch, batch.pairs[:, 0]) & (batch.labels != IGNORED)
        return {
            **super().counts(batch),
            "pairs": float(len(batch.pairs)),
            "chosen_tokens": float(of_chosen.sum()),
        }

    def loss(self, engine: Any, batch: PackedBatch, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss share and metrics.

        Metrics: both loss terms; `preference_accuracy`, the share of pairs with a margin above 0; `ranking_accuracy`,
        the share whose own caption is likelier; `margin`, the mean margin in nats.
        """
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
