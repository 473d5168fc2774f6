"""Held-out split by image, so that no region of a held-out image is trained on."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from ureca.errors import ConfigError

T = TypeVar("T")


class Split(NamedTuple):
    """Image ids of both sides, in input order."""

    train: list[str]
    heldout: list[str]


def split_heldout(image_ids: Iterable[str], share: float, seed: int = 0) -> Split:
    """Hold out about `share` of the images, chosen by a hash of each id and `seed`.

    An image's side depends only on its own id, so it is stable when images are added or reordered. If that leaves one
    side of a small corpus empty (with 0 < share < 1 and two images or more), the image nearest to the threshold changes
    sides.

    Raises:
        ConfigError: share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"heldout={share}: must be between 0 and 1")
    ids = list(image_ids)
    places = {image_id: _place(image_id, seed) for image_id in ids}
    heldout = {image_id for image_id in ids if is_heldout(image_id, share, seed)}
    if 0 < share < 1 and len(places) > 1:
        if not heldout:
            heldout = {min(places, key=places.__getitem__)}
        elif len(heldout) == len(places):
            heldout.remove(max(places, key=places.__getitem__))
    return Split(
        train=[image_id for image_id in ids if image_id not in heldout],
        heldout=[image_id for image_id in ids if image_id in heldout],
    )


def is_heldout(image_id: str, share: float, seed: int = 0) -> bool:
    """Return whether `split_heldout` holds this image out of any corpus large enough to have both sides."""
    return _place(image_id, seed) < share


def _place(image_id: str, seed: int) -> float:
    """Map an id to 0..1, uniformly."""
    digest = hashlib.sha256(f"{seed}\n{image_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items at even spacing, the first and the last included."""
    if not items or count < 1:
        return []
    num = min(count, len(items))
    return [items[round(index * (len(items) - 1) / max(num - 1, 1))] for index in range(num)]
