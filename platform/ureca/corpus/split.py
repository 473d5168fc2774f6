"""Hold images out of training: by image, so that no region of a held-out image is ever trained on."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from ureca.errors import ConfigError

T = TypeVar("T")


class Split(NamedTuple):
    """Image ids, in the order they came."""

    train: list[str]
    heldout: list[str]


def split_heldout(image_ids: Iterable[str], share: float, seed: int = 0) -> Split:
    """Hold out about `share` of the images, chosen by a hash of each id and `seed`.

    An image's side depends on its own id alone: it stays there when images are added or reordered. Only where
    that would leave one side of a small corpus empty (and 0 < share < 1, two images or more) the image
    nearest to the border changes sides.

    Raises:
        ConfigError: share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"heldout={share}: give the share of images to hold out, from 0 to 1")
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
    """Whether `split_heldout` holds this image out of every corpus large enough to have both sides."""
    return _place(image_id, seed) < share


def _place(image_id: str, seed: int) -> float:
    """Where in 0..1 an id falls, evenly spread."""
    digest = hashlib.sha256(f"{seed}\n{image_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items at even spacing, the first included."""
    if not items or count < 1:
        return []
    num = min(count, len(items))
    return [items[round(index * (len(items) - 1) / max(num - 1, 1))] for index in range(num)]
