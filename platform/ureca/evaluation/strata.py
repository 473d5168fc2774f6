"""Kinds of regions that are scored apart: by size, depth, crowding, and whatever else is known of a region.

size       word of the true attributes ("tiny" .. "huge"); drawn scenes only
depth      0 at the top of the mask tree, 1 for its parts, "2 or deeper"
crowding   regions of the image: "under 12", "12 to 23", "24 or more"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ureca.corpus.schema import ImageRow
from ureca.evaluation.bootstrap import Statistics

__all__ = ["Strata", "masks_by_stratum", "restricted", "strata_of"]

Strata = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Image id -> region id -> {name of a stratum: which one}."""

ORDER = {
    "size": ("tiny", "small", "medium", "large", "huge"),
    "depth": ("0", "1", "2 or deeper"),
    "crowding": ("under 12", "12 to 23", "24 or more"),
}


def strata_of(
    row: ImageRow, index: int, truth: Mapping[str, str] | None, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The strata of one region. `truth`: its true attributes; `known`: further strata, from who drew it."""
    depth, count = row.regions[index].depth, len(row.regions)
    found = {
        "depth": str(depth) if depth < 2 else "2 or deeper",
        "crowding": "under 12" if count < 12 else "12 to 23" if count < 24 else "24 or more",
    }
    if truth and "size" in truth:
        found = {"size": truth["size"], **found}
    return {**found, **(known or {})}


def masks_by_stratum(strata: Sequence[Mapping[str, str]]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Stratum -> value -> which items belong to it, (I,) bool; the known values in their order."""
    names = dict.fromkeys(name for each in strata for name in each)
    masks: dict[str, dict[str, NDArray[np.bool_]]] = {}
    for name in names:
        values = [each.get(name) for each in strata]
        there = sorted({value for value in values if value is not None})
        known = [value for value in ORDER.get(name, ()) if value in there]
        ordered = known + [value for value in there if value not in known]
        masks[name] = {value: np.array([each == value for each in values]) for value in ordered}
    return masks


def restricted(statistics: Statistics, mask: NDArray[np.bool_]) -> Statistics:
    """The statistics of the items in `mask` alone: the others take no part."""
    return Statistics(statistics.per_item * mask[:, None], statistics.score, statistics.scale)
