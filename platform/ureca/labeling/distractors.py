"""Which regions of an image a caption may be taken for: those that look alike.

Looks are compared by cosine of features of the regions (`ureca.labeling.features`). A region's ancestors and
descendants are left out: they share its pixels, so they resemble it without being mistaken for it.
Source: URECA (arXiv 2504.05305) section 3, which takes DINO features, a threshold of 0.8, and all pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ureca.corpus.schema import Distractor
from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DistractorConfig:
    """How distractors are chosen."""

    min_similarity: float = 0.9
    """Cosine of the features, from -1 to 1, from which a region counts as alike."""
    max_count: int = 8
    """At most this many of each region, the most alike ones."""
    related: bool = False
    """Whether the regions above and below a region may be its distractors, as the paper has it."""

    def __post_init__(self) -> None:
        if not -1 <= self.min_similarity <= 1:
            raise ConfigError(f"distractors.min_similarity={self.min_similarity}: a cosine is from -1 to 1")
        if self.max_count < 0:
            raise ConfigError(f"distractors.max_count={self.max_count}: give 0 or more")


def find_distractors(
    features: np.ndarray, parents: Sequence[int], config: DistractorConfig
) -> list[tuple[Distractor, ...]]:
    """For each region of an image its distractors, most alike first.

    `features`: (R, F), rows of length 1. `parents`: index of each region's parent, -1 at the top level; parents
    come before their children.
    """
    if not len(parents):
        return []
    similarity = features @ features.T
    ruled_out = np.eye(len(parents), dtype=bool) if config.related else _related(parents)
    allowed = ~ruled_out & (similarity >= config.min_similarity)
    found = []
    for index, candidates in enumerate(allowed):
        others = np.flatnonzero(candidates)
        nearest = others[np.argsort(-similarity[index, others], kind="stable")][: config.max_count]
        found.append(
            tuple(Distractor(index=int(j), similarity=float(np.float32(similarity[index, j]))) for j in nearest)
        )
    return found


def _related(parents: Sequence[int]) -> np.ndarray:
    """bool (R, R): [i, j] = i is j, or above or below it."""
    above = np.eye(len(parents), dtype=bool)
    for index, parent in enumerate(parents):
        if parent >= 0:
            above[index] |= above[parent]
    return above | above.T
