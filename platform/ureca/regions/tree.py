"""Mask tree of an image: which region is part of which, from run-length encodings alone.

    contains      mask i is part of mask j where containment(i, j) = area(i ∩ j) / area(i) >= 0.8
    order         largest area first, equal areas by id: parents come before children, and the result
                  does not depend on the input order
    every id      is a region, or one of a region's merged_ids, or among the dropped with a reason

Two presets:
    default   Near-duplicates (IoU >= 0.9) are first merged into one region, so that they do not lengthen
              chains. A mask's parent is the one with the largest containment; of several within
              0.02 of it, the smallest. Without that margin, a part that extends a few pixels beyond its whole
              (a neck of its head, a handle of its spoon) would become a child of the whole's whole. Only
              specks are dropped.
    paper     As the authors' code: no merging; from the top, into the first (largest) child that
              contains the mask; only top-level objects with at least 4 levels, of 0.007 to 0.7 of the image,
              and descendants of at least 0.007, whole subtrees dropped.
Source: URECA (arXiv 2504.05305) section 3 and appendix E; its repository's utils/make_tree.py and preprocess.py (the
paper's "IoU" is containment in the code).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ureca.errors import ConfigError, MaskError
from ureca.regions.overlaps import containments, ious
from ureca.regions.rle import Rle, Size, check_rles, rle_areas, rle_bboxes

DropReason = Literal["too_small", "too_large", "too_few_levels", "parent_dropped"]
DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """Construction of the mask tree, and the filters on its regions."""

    containment: float = 0.8
    """Minimum fraction of a mask inside another to be its part."""
    parent_rule: Literal["best", "first"] = "best"
    """best: the parent that contains most of the mask; first: the largest, level by level (as the paper)."""
    containment_margin: float = 0.02
    """With rule best: of the parents within this distance of the largest containment, the smallest wins."""
    merge_iou: float | None = 0.9
    """Masks of at least this IoU are merged into one region; null merges nothing."""
    min_area_px: int = 16
    """Minimum area in pixels; smaller regions are dropped with their subtree."""
    min_area_share: float = 0.0
    """Minimum fraction of the image; smaller regions are dropped with their subtree."""
    max_area_share: float = 1.0
    """Maximum fraction of the image for a top-level region; larger ones are dropped with their subtree."""
    min_levels: int = 1
    """Minimum levels of a top-level region's subtree, itself counted; shallower ones are dropped with it."""

    def __post_init__(self) -> None:
        shares = {"containment": self.containment, "containment_margin": self.containment_margin}
        shares |= {"min_area_share": self.min_area_share, "max_area_share": self.max_area_share}
        if self.merge_iou is not None:
            shares["merge_iou"] = self.merge_iou
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"tree.{name}={value}: give a share from 0 to 1")
        for name in ("containment", "merge_iou"):
            if shares.get(name) == 0:
                raise ConfigError(f"tree.{name}=0: every mask would belong to every other; give more than 0")
        if self.parent_rule not in ("best", "first"):
            raise ConfigError(f"tree.parent_rule={self.parent_rule!r}: give 'best' or 'first'")

    @classmethod
    def preset(cls, name: str) -> "TreeConfig":
        """Return the preset "default" or "paper".

        Raises:
            ConfigError: there is no such preset.
        """
        presets = {
            "default": cls(),
            "paper": cls(
                parent_rule="first",
                merge_iou=None,
                min_area_px=0,
                min_area_share=0.007,
                max_area_share=0.7,
                min_levels=4,
            ),
        }
        if name not in presets:
            raise ConfigError(f"mask tree preset {name!r} does not exist; there are {', '.join(presets)}")
        return presets[name]


@dataclass(frozen=True)
class Mask:
    """An input mask, not yet placed in a tree."""

    region_id: str
    segmentation: Rle


@dataclass(frozen=True, kw_only=True)
class Region:
    """A node of the tree."""

    region_id: str
    merged_ids: tuple[str, ...]
    """Ids of the near-duplicates merged into this region, in the tree's order."""
    parent: int
    """Index in the tree's regions; -1 = top level."""
    depth: int
    """0: top level."""
    segmentation: Rle
    area: int
    """In pixels."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height in pixels."""


@dataclass(frozen=True)
class Dropped:
    """A mask that is not in the tree, and the reason."""

    region_id: str
    reason: DropReason


@dataclass(frozen=True)
class MaskTree:
    """Regions of one image, parents before children, and the dropped masks."""

    size: Size
    """(height, width) of the image."""
    regions: tuple[Region, ...]
    dropped: tuple[Dropped, ...]

    def children(self, index: int) -> list[int]:
        """Indices of the regions directly below `index`; -1 asks for the top level."""
        return [i for i, region in enumerate(self.regions) if region.parent == index]

    def ancestors(self, index: int) -> list[int]:
        """Indices from the parent up to the top level."""
        found = []
        while (index := self.regions[index].parent) >= 0:
            found.append(index)
        return found

    def descendants(self, index: int) -> list[int]:
        """Indices of all regions below `index`, parents before children."""
        below = {index}
        for i, region in enumerate(self.regions):
            if region.parent in below:
                below.add(i)
        return sorted(below - {index})


def build_mask_tree(masks: Sequence[Mask], size: Size, config: TreeConfig | None = None) -> MaskTree:
    """Build the tree of an image's masks; `size` is the image's (height, width), `config` the default preset.

    Raises:
        MaskSizeError: a mask of another size.
        MaskError: a mask that is empty or no RLE, or an id used twice.
    """
    config = TreeConfig() if config is None else config
    # check the masks and sort them: largest first
    names = [mask.region_id for mask in masks]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise MaskError(f"region id {twice!r} occurs twice. Ids must be unique in an image.")
    where = [f"region {name!r}" for name in names]
    checked = check_rles([mask.segmentation for mask in masks], size, where=where)
    unordered_areas = rle_areas(checked)
    order = sorted(range(len(masks)), key=lambda index: (-unordered_areas[index], _natural(names[index])))
    ids = [names[index] for index in order]
    rles = [checked[index] for index in order]
    areas = unordered_areas[order]
    boxes = rle_bboxes(rles)

    # merge near-duplicates, find the parents of the others, and filter
    thresholds = [config.containment] if config.merge_iou is None else [config.containment, config.merge_iou]
    containment = containments(rles, areas, boxes, at_least=min(thresholds))
    merged = _merge_duplicates(ious(containment, areas), config.merge_iou)
    kept = list(merged)
    find_parents = _best_parents if config.parent_rule == "best" else _first_parents
    parents = find_parents(containment[np.ix_(kept, kept)], config)
    reasons = _admit(parents, areas[kept], size, config)

    # number the kept nodes: their index among the regions differs from that among the nodes
    regions: list[Region] = []
    dropped: list[Dropped] = []
    index_of = {-1: -1}
    for node, k in enumerate(kept):
        duplicates = tuple(ids[j] for j in merged[k])
        reason = reasons[node]
        if reason is not None:
            dropped += [Dropped(region_id, reason) for region_id in (ids[k], *duplicates)]
            continue
        parent = index_of[parents[node]]
        index_of[node] = len(regions)
        regions.append(
            Region(
                region_id=ids[k],
                merged_ids=duplicates,
                parent=parent,
                depth=0 if parent < 0 else regions[parent].depth + 1,
                segmentation=rles[k],
                area=int(areas[k]),
                bbox=boxes[k],
            )
        )
    return MaskTree(size=size, regions=tuple(regions), dropped=tuple(dropped))


def _natural(region_id: str) -> tuple[bool, int, str]:
    """Sort key: numbers before names, "9" before "10"."""
    is_number = region_id.isascii() and region_id.isdigit()
    return not is_number, int(region_id) if is_number else 0, region_id


def _merge_duplicates(iou: np.ndarray, merge_iou: float | None) -> dict[int, list[int]]:
    """Return survivor -> indices merged into it; `iou` is in the tree's order, so the larger survives.

    A mask joins the survivor of highest IoU. A mask similar to a merged one but not to its survivor stays.
    """
    merged: dict[int, list[int]] = {}
    for k in range(len(iou)):
        survivors = list(merged)
        if merge_iou is not None and survivors:
            likeness = iou[k, survivors]
            best = int(likeness.argmax())
            if likeness[best] >= merge_iou:
                merged[survivors[best]].append(k)
                continue
        merged[k] = []
    return merged


def _best_parents(containment: np.ndarray, config: TreeConfig) -> list[int]:
    parents = []
    for node in range(len(containment)):
        shares = containment[node, :node]  # only earlier, that is, larger masks
        accepting = np.flatnonzero(shares >= config.containment)
        if len(accepting):
            closest = shares[accepting].max() - config.containment_margin
            # the last of them is the smallest
            parents.append(int(accepting[shares[accepting] >= closest][-1]))
        else:
            parents.append(-1)
    return parents


def _first_parents(containment: np.ndarray, config: TreeConfig) -> list[int]:
    parents: list[int] = []
    children: dict[int, list[int]] = {-1: []}
    for node in range(len(containment)):
        parent = -1
        while True:
            accepting = (c for c in children[parent] if containment[node, c] >= config.containment)
            child = next(accepting, None)
            if child is None:
                break
            parent = child
        parents.append(parent)
        children[parent].append(node)
        children[node] = []
    return parents


def _admit(parents: Sequence[int], areas: np.ndarray, size: Size, config: TreeConfig) -> list[DropReason | None]:
    """Return why each node is dropped, None if it is kept. Levels are counted before anything is dropped."""
    levels = [1] * len(parents)
    for node in reversed(range(len(parents))):
        if parents[node] >= 0:
            levels[parents[node]] = max(levels[parents[node]], levels[node] + 1)
    reasons: list[DropReason | None] = []
    for node, parent in enumerate(parents):
        share = areas[node] / (size[0] * size[1])
        if parent >= 0 and reasons[parent] is not None:
            reasons.append("parent_dropped")
        elif parent < 0 and levels[node] < config.min_levels:
            reasons.append("too_few_levels")
        elif areas[node] < config.min_area_px or share < config.min_area_share:
            reasons.append("too_small")
        elif parent < 0 and share > config.max_area_share:
            reasons.append("too_large")
        else:
            reasons.append(None)
    return reasons
