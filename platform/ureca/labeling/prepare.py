"""From a row of the manifest to what a describer needs: pixels, mask tree, looks, distractors.

    read      image and masks; proposed masks where it has none
    tree      which region is part of which, what each looks like, which are alike

The dense masks of one large photo take hundreds of megabytes while they are measured, so a process prepares
one image at a time, in a thread of its own, while it waits for the captions of many.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from ureca.attributes.measure import RegionAttributes, measure_tree
from ureca.corpus.read import LoadedImage, read_row
from ureca.corpus.schema import Distractor
from ureca.corpus.sources.manifest import ManifestRow
from ureca.errors import InputError
from ureca.labeling.config import WalkConfig
from ureca.labeling.distractors import find_distractors
from ureca.labeling.features import make_features
from ureca.proposals.proposer import Proposer, make_proposer
from ureca.regions.rle import Rle, Size
from ureca.regions.tree import MaskTree, build_mask_tree


@dataclass(frozen=True)
class PreparedImage:
    """An image whose regions can be described. Tuples are in the order of the regions."""

    image: np.ndarray
    """uint8 (H, W, 3), RGB."""
    tree: MaskTree
    segmentations: tuple[Rle, ...]
    parents: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]
    attributes: tuple[RegionAttributes, ...]
    """Empty if not measured."""
    distractors: tuple[tuple[Distractor, ...], ...]
    notes: dict[str, int]
    """What was put right or left out, and how often."""

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.tree.size


class Preparer:
    """Prepares images, one after the other. One per process: it may hold models.

    `uses_model`: whether the describer does; then attributes are measured only if regions are compared by them.
    """

    def __init__(self, config: WalkConfig, *, uses_model: bool) -> None:
        self._config = config
        self._measures = not uses_model or config.features.kind == "measured"
        self._features = make_features(config.features)
        self._propose: Proposer | None = None if config.proposals is None else make_proposer(config.proposals)

    def read(self, row: ManifestRow) -> LoadedImage:
        """Image and masks of a row.

        Raises:
            InputError: it has no masks and none are to be proposed.
            UrecaError: as `ureca.corpus.read_row`.
        """
        if row.masks_path is None and self._propose is None:
            raise InputError(
                f"{row.image_path}: no masks beside it. Add a JSON file of its name in SA-1B's form, remove the photo, "
                "or let regions be proposed (--proposals.kind=segments or sam)."
            )
        loaded = read_row(row, self._config.limits)
        if self._propose is None or row.masks_path is not None:
            return loaded
        masks = self._propose(loaded.image)
        return replace(loaded, masks=masks, notes=loaded.notes + Counter(proposed=len(masks)))

    def tree(self, loaded: LoadedImage) -> tuple[MaskTree, dict[str, int]]:
        """The mask tree of an image, and what was put right or left out on the way to it, and how often.

        Raises:
            MaskError: masks from which no tree can be made.
        """
        tree = build_mask_tree(loaded.masks, loaded.size, self._config.tree)
        return tree, {**loaded.notes, **_tree_notes(tree)}

    def arrange(self, loaded: LoadedImage) -> PreparedImage:
        """Tree, looks and distractors of an image's regions. Raises as `tree`."""
        image = loaded.image
        tree, notes = self.tree(loaded)
        segmentations = tuple(region.segmentation for region in tree.regions)
        parents = tuple(region.parent for region in tree.regions)
        attributes = tuple(measure_tree(image, segmentations, parents)) if self._measures else ()
        features = self._features(image, segmentations, attributes)
        return PreparedImage(
            image=image,
            tree=tree,
            segmentations=segmentations,
            parents=parents,
            children=_children(parents),
            attributes=attributes,
            distractors=tuple(find_distractors(features, parents, self._config.distractors)),
            notes=notes,
        )


def _children(parents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in parents]
    for index, parent in enumerate(parents):
        if parent >= 0:
            found[parent].append(index)
    return tuple(tuple(each) for each in found)


def _tree_notes(tree: MaskTree) -> dict[str, int]:
    """How many masks are no regions of their own, by reason."""
    notes: dict[str, int] = {}
    for dropped in tree.dropped:
        notes[dropped.reason] = notes.get(dropped.reason, 0) + 1
    merged = sum(len(region.merged_ids) for region in tree.regions)
    return {**notes, "merged": merged} if merged else notes
