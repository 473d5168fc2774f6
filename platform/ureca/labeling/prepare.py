"""Prepare an image for describers: mask tree, attributes, distractors.

The dense masks of a large photo take hundreds of megabytes while they are measured. A process therefore prepares one
image at a time, in a thread, while it waits for the captions of many.
"""

from dataclasses import dataclass

import numpy as np

from ureca.attributes.measure import RegionAttributes, measure_tree
from ureca.corpus.read import LoadedImage
from ureca.corpus.schema import Distractor
from ureca.labeling.config import LabelSettings
from ureca.labeling.distractors import find_distractors
from ureca.labeling.features import make_features
from ureca.pipeline.load import ImageLoader
from ureca.regions.rle import Rle, Size
from ureca.regions.tree import MaskTree


@dataclass(frozen=True)
class PreparedImage:
    """An image ready to be described. Tuples are in region order."""

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
    """Repaired or dropped masks, by reason."""

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.tree.size


class Preparer:
    """Prepares images, one at a time. One per process: it may hold models.

    `uses_model`: the describer uses a model; attributes are then measured only if regions are compared by them.
    """

    def __init__(self, config: LabelSettings, *, uses_model: bool) -> None:
        self._config = config
        self._measures = not uses_model or config.features.kind == "measured"
        self._features = make_features(config.features)
        self.loader = ImageLoader(config)

    def arrange(self, loaded: LoadedImage) -> PreparedImage:
        """Build tree, attributes and distractors of an image's regions. Raises like `ImageLoader.tree`."""
        image = loaded.image
        tree, notes = self.loader.tree(loaded)
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
            distractors=tuple(
                find_distractors(features, parents, self._config.distractors, kind=self._config.features.kind)
            ),
            notes=notes,
        )


def _children(parents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    children: list[list[int]] = [[] for _ in parents]
    for index, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(index)
    return tuple(tuple(indices) for indices in children)
