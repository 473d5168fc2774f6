"""Load images of a corpus: read image and masks, propose masks where there are none, build the mask tree."""

from collections import Counter
from dataclasses import replace

from ureca.corpus.read import LoadedImage, read_row
from ureca.corpus.sources.manifest import ManifestRow
from ureca.errors import InputError
from ureca.pipeline.config import ImageSettings
from ureca.proposals.proposer import Proposer, make_proposer
from ureca.regions.tree import MaskTree, build_mask_tree


class ImageLoader:
    """Loads one image at a time. One per process: it may hold a model that proposes masks."""

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings
        self._propose: Proposer | None = None if settings.proposals is None else make_proposer(settings.proposals)

    def read(self, row: ManifestRow) -> LoadedImage:
        """Read image and masks of a manifest row.

        Raises:
            InputError: the image has no masks and none are to be proposed.
            UrecaError: like `ureca.corpus.read.read_row`.
        """
        if row.masks_path is None and self._propose is None:
            raise InputError(
                f"{row.image_path}: no masks found. Add a JSON file of the same name in SA-1B's format, remove the "
                "photo, or let regions be proposed (--proposals.kind=segments or sam)."
            )
        loaded = read_row(row, self._settings.limits)
        if self._propose is None or row.masks_path is not None:
            return loaded
        masks = self._propose(loaded.image)
        return replace(loaded, masks=masks, notes=loaded.notes + Counter(proposed=len(masks)))

    def tree(self, loaded: LoadedImage) -> tuple[MaskTree, dict[str, int]]:
        """Build the mask tree of an image; also return how often masks were repaired or left out, by reason.

        Raises:
            MaskError: no tree can be built from the masks.
        """
        tree = build_mask_tree(loaded.masks, loaded.size, self._settings.tree)
        return tree, {**loaded.notes, **_tree_notes(tree)}


def _tree_notes(tree: MaskTree) -> dict[str, int]:
    """Count the masks that did not become regions, by reason."""
    notes: dict[str, int] = {}
    for dropped in tree.dropped:
        notes[dropped.reason] = notes.get(dropped.reason, 0) + 1
    merged = sum(len(region.merged_ids) for region in tree.regions)
    return {**notes, "merged": merged} if merged else notes
