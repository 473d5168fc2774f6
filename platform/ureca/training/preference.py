"""Stage 3's objective: a region's own caption shall be likelier for it than its distractors' captions.

    x   image and region        y+  the region's caption        y-  a distractor's caption, for the same region

    margin = [log p(y+|x) - log q(y+|x)] - [log p(y-|x) - log q(y-|x)]     p: the captioner, q: as stage 2 left it
    loss   = mean over pairs of -log sigmoid(beta * margin)  +  sft_weight * mean over tokens of y+ of -log p

Both means are over the whole step, all workers and passes. q is the same code over a frozen copy of what trains
(ureca.model.reference), so at the start every margin is 0 and the first mean is log 2.
Sources: direct preference optimization, Rafailov et al. 2023 (arXiv 2305.18290); the second term, Pang et al. 2024
(arXiv 2404.19733); label smoothing, Mitchell 2023 (a note on DPO with noisy preferences).
Shapes: K pairs, R branches (a region with one caption).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ureca.model import PackedBatch, as_reference
from ureca.model.packing import IGNORED
from ureca.training.config import PreferenceConfig
from ureca.training.objective import CaptionLoss

__all__ = ["PreferenceLoss", "preference_losses"]


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
