"""What a describer is asked and what it answers: one interface for measuring, chat models and local engines.

A region is described three times (URECA, arXiv 2504.05305, section 3):

    short    top-down: knows its parent's short caption and those of the siblings before it
    long     bottom-up: knows its own short caption and its children's long ones
    unique   knows its long caption and its distractors, and must fit none of them
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from ureca.attributes.measure import RegionAttributes
from ureca.corpus.schema import Distractor
from ureca.regions.rle import Rle

Pass = Literal["short", "long", "unique"]


@dataclass(frozen=True, kw_only=True)
class DescribeRequest:
    """One question to a describer."""

    pass_name: Pass
    image: np.ndarray = field(repr=False)
    """uint8 (H, W, 3), RGB: what a describer that looks cuts its views from."""
    segmentation: Rle = field(repr=False)
    index: int
    """Of the region among the image's."""
    attributes: tuple[RegionAttributes, ...] = field(repr=False)
    """Measured, of every region of the image."""
    own_caption: str | None = None
    """In pass long the region's short caption, in pass unique its long one."""
    parent_caption: str | None = None
    """The parent's short caption; None at the top level."""
    sibling_captions: tuple[str, ...] = ()
    """Pass short: the short captions of the siblings before it."""
    children: tuple[int, ...] = ()
    """Indices of the regions directly below it."""
    child_captions: tuple[str, ...] = ()
    """Pass long: the long captions of `children`."""
    distractors: tuple[Distractor, ...] = ()
    """Pass unique: what the caption must not fit, most alike first."""
    confused_with: tuple[int, ...] = ()
    """Pass unique, asked again: the regions that the caption given before fits as well."""


@dataclass(frozen=True)
class Description:
    """An answer: one caption, and what it took where a model wrote it."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Describer(Protocol):
    """Writes captions. One instance serves many images at once."""

    name: str
    """What the configuration calls it."""
    model: str | None
    """Which model answers, if any."""
    prompt_version: str
    """Changes whenever the same question may get another answer."""

    async def describe(self, request: DescribeRequest) -> Description:
        """Answer one request.

        Raises:
            Exception: the image is then set aside with the error's text.
        """
        ...
