"""First-fit decreasing bin packing, for branches in attention blocks and images in microbatches."""

from collections.abc import Sequence


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items into bins of `capacity`; return the item indices of each bin.

    Items are placed longest first (equal lengths in their order), each into the first bin with room. An item longer
    than `capacity` gets its own bin.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        index = next((b for b, left in enumerate(room) if left >= lengths[item]), len(bins))
        if index == len(bins):
            bins.append([])
            room.append(capacity)
        bins[index].append(item)
        room[index] -= lengths[item]
    return bins
