"""Filter proposed masks by quality, size and overlap."""

from collections.abc import Iterable

from ureca.proposals.config import ProposalConfig
from ureca.regions.rle import Rle, iou_matrix, rle_area
from ureca.regions.tree import Mask


def choose_masks(ranked: Iterable[Rle], config: ProposalConfig) -> list[Mask]:
    """Return the selected masks of `ranked` (best first, all of one size): largest first, ids counting from "1".

    Masks are compared by mask IoU instead of box IoU as in SAM's mask generation: a part that fills its whole's box (a
    window frame and its pane) is a separate region.
    """
    kept: list[tuple[int, Rle]] = []
    for rle in ranked:
        if len(kept) == config.region_limit:
            break
        area = rle_area(rle)
        height, width = rle["size"]
        if not config.min_area_share <= area / (height * width) <= config.max_area_share:
            continue
        # an IoU is at most the ratio of the areas, so only masks of about this size can be duplicates
        similar = [other for size, other in kept if min(size, area) > config.max_iou * max(size, area)]
        if iou_matrix([rle, *similar])[0, 1:].max(initial=0.0) <= config.max_iou:
            kept.append((area, rle))
    kept.sort(key=lambda each: -each[0])
    return [Mask(str(number), rle) for number, (_, rle) in enumerate(kept, start=1)]
