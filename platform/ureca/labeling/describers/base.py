"""What a describer is asked and what it answers: one interface for measuring, chat models and local engines.

A region is described three times (URECA, arXiv 2504.05305, section 3), and then looked at twice more:

    short    top-down: knows its parent's short caption and those of the siblings before it
    long     bottom-up: knows its own short caption and its children's long ones
    unique   knows its long caption and its distractors, and must fit none of them
    choose   blind: which of several regions does a caption describe?
    judge    is a caption true of its region? The paper's own check of its test set
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
    """One question to a describer."""

    pass_name: Pass
    image: np.ndarray = field(repr=False)
    """uint8 (H, W, 3), RGB: what a describer that looks cuts its views from."""
    segmentations: tuple[Rle, ...] = field(repr=False)
    """Of every region of the image; parents stand before their children."""
    parents: tuple[int, ...] = field(repr=False)
    """The index of each region's parent, -1 at the top level."""
    index: int
    """Of the region among the image's. In pass choose the right answer: nothing that a model sees may tell it."""
    attributes: tuple[RegionAttributes, ...] = field(default=(), repr=False)
    """Measured, of every region of the image; empty for a describer that looks."""
    own_caption: str | None = None
    """Pass long: the region's short caption; unique: its long one; choose and judge: the caption in question."""
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
    distractor_captions: tuple[str, ...] = ()
    """Pass unique: the long captions of `distractors`."""
    confused_with: tuple[int, ...] = ()
    """Pass unique, asked again: the regions that the caption given before fits as well."""
    candidates: tuple[int, ...] = ()
    """Pass choose: the regions to choose from, `index` among them, in an order that tells nothing."""
    problem: str | None = None
    """Asked again: what was wrong with the answer before."""

    @property
    def segmentation(self) -> Rle:
        """Of the region itself."""
        return self.segmentations[self.index]


@dataclass(frozen=True)
class AnswerProblem:
    """What makes an answer unusable, so that the question is asked again."""

    kind: str
    """What the ledger counts: refusal, empty, language, copied, equal, malformed, …"""
    message: str
    """For the model: what was wrong with its answer before."""


@dataclass(frozen=True)
class Description:
    """An answer, and what it took where a model gave it."""

    text: str
    """The caption; in the passes choose and judge the answer as it came."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """That the endpoint or the engine worked on it, waiting for a free place left out."""
    choice: int | None = None
    """Pass choose: the index of the region chosen; None where the answer chooses none."""
    verdict: bool | None = None
    """Pass judge: whether the caption is true; None where the answer says neither."""
    told_apart: Mapping[int, str] = field(default_factory=dict)
    """Pass unique: distractor -> what the caption says that is not true of it, as far as the model named it."""
    problem: AnswerProblem | None = None
    """Set by the describer where the answer can't be used; its tokens count all the same."""


class Describer(Protocol):
    """Writes captions. One instance serves many images at once."""

    name: str
    """What the configuration calls it."""
    model: str | None
    """Which model answers, if any."""
    prompt_version: str
    """Changes whenever the same question may get another answer."""
    uses_model: bool
    """Whether it looks at views and answers the passes choose and judge; else captions are checked by claims."""

    async def check(self) -> None:
        """Find out, once before a job starts, whether it can answer at all.

        Raises:
            UrecaError: it can't; says which address or file was tried.
        """
        ...

    async def describe(self, request: DescribeRequest) -> Description:
        """Answer one request.

        Raises:
            JobStopped: neither this nor any other request can be answered for now; the job stops.
            Exception: the image is then set aside with the error's text.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and processes."""
        ...
