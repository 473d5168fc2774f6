"""Flags of captioned regions that labeling and captioning share."""

from collections import Counter
from collections.abc import Sequence

from ureca.errors import UrecaError

NOT_UNIQUE = "not_unique"
"""Flag of a region whose caption fits, or may fit, another region of the image."""


class UnusableAnswerError(UrecaError):
    """No region of an image received a caption."""


def repeated_captions(captions: Sequence[str | None]) -> list[bool]:
    """Return, per caption, whether another region of the image has the same one (case and spacing ignored)."""
    counted = Counter(_normalized(caption) for caption in captions if caption)
    return [bool(caption) and counted[_normalized(caption or "")] > 1 for caption in captions]


def _normalized(caption: str) -> str:
    return " ".join(caption.lower().split()).rstrip(".")
