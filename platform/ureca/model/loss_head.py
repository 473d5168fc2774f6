"""Vocabulary head fused with its loss, a few hundred caption tokens at a time.

Logits of all captions of a step, 150,000 values per token, and their saved gradients would take more memory than the
rest of the model. The head's weights are frozen in every stage, so a token's gradient is computed with its loss: only
the gradient is saved, and nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TOKENS = 256
"""Tokens per chunk: more would exceed the caches, fewer would read the weights more often."""


class LossHead(nn.Linear):
    """transformers' head, which returns losses if labels are given. Still a module: ZeRO 3 gathers weights per
    module."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Map `(..., D)` to logits `(..., V)`; with labels `(n,)`, map `(n, D)` to cross-entropies `(n,)` in
        float32."""
        if labels is None:
            return super().forward(hidden)
        if self.weight.requires_grad or self.bias is not None:  # a base in pretraining: its vocabulary is small
            logits = super().forward(hidden)
            logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
            return nn.functional.cross_entropy(logits, labels, reduction="none")
        return _FrozenHeadLoss.apply(hidden, self.weight, labels)

    @classmethod
    def convert(cls, head: nn.Linear) -> None:
        """Convert `head` in place, keeping its weights and name."""
        head.__class__ = cls


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        rows = hidden.to(weight.dtype)
        losses = torch.empty(len(labels), dtype=exact, device=hidden.device)
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for at in range(0, len(labels), _TOKENS):
            part = slice(at, at + _TOKENS)
            logs = torch.log_softmax(rows[part] @ weight.T, dim=-1, dtype=exact)
            losses[part] = -logs.gather(1, labels[part, None])[:, 0]
            if gradient is not None:
                of_logits = logs.exp_()
                of_logits[torch.arange(len(of_logits), device=labels.device), labels[part]] -= 1
                torch.mm(of_logits.to(weight.dtype), weight, out=gradient[part])
        ctx.of_type = hidden.dtype
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return (gradient * grad[:, None].to(gradient.dtype)).to(ctx.of_type), None, None
