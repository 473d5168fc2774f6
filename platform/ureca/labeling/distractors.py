"""Which regions of an image a caption may be taken for: those that look alike.

Looks are compared by cosine on measured features (colors, size, elongation, outline). A region's ancestors
and descendants are left out: they share its pixels, so they resemble it without being mistaken for it.
Source: URECA (arXiv 2504.05305) section 3, which takes DINO features, a threshold of 0.8, and all pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ureca.attributes.measure import RegionAttributes
from ureca.corpus.schema import Distractor
from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DistractorConfig:
    """How distractors are chosen."""

    min_similarity: float = 0.9
    """Cosine of the features, from -1 to 1, from which a region counts as alike."""
    max_count: int = 8
    """At most this many of each region, the most alike ones."""

    def __post_init__(self) -> None:
        if not -1 <= self.min_similarity <= 1:
            raise ConfigError(f"distractors.min_similarity={self.min_similarity}: a cosine is from -1 to 1")
        if self.max_count < 0:
            raise ConfigError(f"distractors.max_count={self.max_count}: give 0 or more")


def find_distractors(regions: Sequence[RegionAttributes], config: DistractorConfig) -> list[tuple[Distractor, ...]]:
    """For each region of an image its distractors, most alike first. Parents come before their children."""
    if not regions:
        return []
    features = np.stack([region.features for region in regions])
    similarity = features @ features.T
    allowed = ~_related([region.parent for region in regions]) & (similarity >= config.min_similarity)
    found = []
    for index, candidates in enumerate(allowed):
        others = np.flatnonzero(candidates)
        nearest = others[np.argsort(-similarity[index, others], kind="stable")][: config.max_count]
        found.append(
            tuple(Distractor(index=int(j), similarity=float(np.float32(similarity[index, j]))) for j in nearest)
        )
    return found


def _related(parents: Sequence[int]) -> np.ndarray:
    """bool (K, K): [i, j] = i is j, or above or below it."""
    above = np.eye(len(parents), dtype=bool)
    for index, parent in enumerate(parents):
        if parent >= 0:
            above[index] |= above[parent]
    return above | above.T
