"""Distractors: the regions of an image that a caption may be mistaken for, because they look alike.

Regions are compared by cosine similarity of features (`ureca.labeling.features`). Ancestors and descendants of a region
are excluded: they share its pixels, so they resemble it without being confused with it. Source: URECA (arXiv
2504.05305) section 3, which uses DINO features, a threshold of 0.8, and all pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ureca.corpus.schema import Distractor
from ureca.errors import ConfigError

_MIN_SIMILARITY = {"measured": 0.9, "dinov2": 0.7}
"""Default minimum by kind of features (`FeatureConfig.kind`)."""


@dataclass(frozen=True, kw_only=True)
class DistractorConfig:
    """Selection of distractors."""

    min_similarity: float | None = None
    """Minimum cosine similarity of a distractor, from -1 to 1. Null: 0.9 for measured features, 0.7 for dinov2, a first
    value to be checked on your images."""
    max_count: int = 8
    """Maximum distractors per region, most similar first."""
    related: bool = False
    """Allow ancestors and descendants as distractors, as in the paper."""

    def __post_init__(self) -> None:
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ConfigError(f"distractors.min_similarity={self.min_similarity}: must be a cosine, from -1 to 1")
        if self.max_count < 0:
            raise ConfigError(f"distractors.max_count={self.max_count}: must be at least 0")


def find_distractors(
    features: np.ndarray, parents: Sequence[int], config: DistractorConfig, *, kind: str = "measured"
) -> list[tuple[Distractor, ...]]:
    """Return the distractors of each region, most similar first.

    Args:
        features: (R, F), rows of length 1.
        parents: index of each region's parent, -1 at the top level; parents precede their children.
        config: selection of distractors.
        kind: kind of the features, which decides the default of `min_similarity`.
    """
    if not len(parents):
        return []
    similarity = features @ features.T
    excluded = np.eye(len(parents), dtype=bool) if config.related else _related(parents)
    least = _MIN_SIMILARITY[kind] if config.min_similarity is None else config.min_similarity
    allowed = ~excluded & (similarity >= least)
    distractors = []
    for index, candidates in enumerate(allowed):
        allowed_indices = np.flatnonzero(candidates)
        nearest = allowed_indices[np.argsort(-similarity[index, allowed_indices], kind="stable")][: config.max_count]
        distractors.append(
            tuple(Distractor(index=int(j), similarity=float(np.float32(similarity[index, j]))) for j in nearest)
        )
    return distractors


def _related(parents: Sequence[int]) -> np.ndarray:
    """Return a bool (R, R) matrix: [i, j] is true if i is j, its ancestor or its descendant."""
    above = np.eye(len(parents), dtype=bool)
    for index, parent in enumerate(parents):
        if parent >= 0:
            above[index] |= above[parent]
    return above | above.T
