"""Describer interface: requests and answers of measuring, chat models and local engines.

A region is described in three passes (URECA, arXiv 2504.05305, section 3), and checked in two more:

    short    top-down: given its parent's short caption and those of the preceding siblings
    long     bottom-up: given its own short caption and its children's long ones
    unique   given its long caption and its distractors; must fit no distractor
    choose   blind: which of several regions does a caption describe?
    judge    is a caption true of its region? The paper's check of its test set
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from ureca.attributes.measure import RegionAttributes
from ureca.corpus.schema import Distractor
from ureca.regions.rle import Rle

Pass = Literal["short", "long", "unique", "choose", "judge"]


@dataclass(frozen=True, kw_only=True)
class DescribeRequest:
    """One request to a describer."""

    pass_name: Pass
    image: np.ndarray = field(repr=False)
    """uint8 (H, W, 3), RGB; describers with a model cut their views from it."""
    segmentations: tuple[Rle, ...] = field(repr=False)
    """Segmentation of every region of the image; parents precede their children."""
    parents: tuple[int, ...] = field(repr=False)
    """Index of each region's parent, -1 at the top level."""
    index: int
    """Index of the region. In pass choose this is the correct answer, which no model input may reveal."""
    attributes: tuple[RegionAttributes, ...] = field(default=(), repr=False)
    """Measured attributes of every region; empty for describers with a model."""
    own_caption: str | None = None
    """Pass long: the region's short caption; unique: its long one; choose and judge: the caption in question."""
    parent_caption: str | None = None
    """The parent's short caption; None at the top level."""
    sibling_captions: tuple[str, ...] = ()
    """Pass short: short captions of the preceding siblings."""
    children: tuple[int, ...] = ()
    """Indices of the child regions."""
    child_captions: tuple[str, ...] = ()
    """Pass long: long captions of `children`."""
    distractors: tuple[Distractor, ...] = ()
    """Pass unique: regions that the caption must not fit, most similar first."""
    distractor_captions: tuple[str, ...] = ()
    """Pass unique: long captions of `distractors`."""
    confused_with: tuple[int, ...] = ()
    """Pass unique, repeated: regions that the previous caption fits as well."""
    candidates: tuple[int, ...] = ()
    """Pass choose: regions to choose from, including `index`, in a neutral order."""
    problem: str | None = None
    """Repeated request: the problem of the previous answer."""

    @property
    def segmentation(self) -> Rle:
        """Segmentation of the region."""
        return self.segmentations[self.index]


@dataclass(frozen=True)
class AnswerProblem:
    """Reason why an answer is unusable and the request is repeated."""

    kind: str
    """Kind for the usage report: refusal, empty, language, copied, equal, malformed, …"""
    message: str
    """Message to the model about its previous answer."""


@dataclass(frozen=True)
class Description:
    """An answer, and its usage if a model gave it."""

    text: str
    """The caption; in passes choose and judge the raw answer."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """Seconds of service time, excluding time in the queue."""
    choice: int | None = None
    """Pass choose: index of the chosen region; None if the answer chooses none."""
    verdict: bool | None = None
    """Pass judge: whether the caption is true; None if the answer is neither."""
    told_apart: Mapping[int, str] = field(default_factory=dict)
    """Pass unique: distractor -> the claim of the caption that is not true of it, as far as the model named one."""
    problem: AnswerProblem | None = None
    """Set if the answer is unusable; its tokens count nevertheless."""


class Describer(Protocol):
    """Writes captions. One instance serves many images concurrently."""

    name: str
    """Name in the configuration."""
    model: str | None
    """Model that answers, if any."""
    prompt_version: str
    """Version of the prompts; changes whenever the same request may get another answer."""
    uses_model: bool
    """True if a model sees the views and answers passes choose and judge; otherwise captions are checked by claims."""

    async def check(self) -> None:
        """Check once, before a job starts, that the describer can answer at all.

        Raises:
            UrecaError: it can't; names the address or file.
        """
        ...

    async def describe(self, request: DescribeRequest) -> Description:
        """Answer one request.

        Raises:
            JobStopped: neither this nor any other request can be answered for now; the job stops.
            Exception: the image is quarantined with the error's text.
        """
        ...

    async def close(self) -> None:
        """Close connections and end child processes."""
        ...
