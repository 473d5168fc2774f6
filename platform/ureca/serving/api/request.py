"""Translate a request into a backend call and the answer slots that wait for its captions.

An invalid region gets its error in its own slot; an invalid request is refused.
"""

import asyncio
import functools
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from ureca.engine.results import Caption, RegionFault
from ureca.errors import MaskError
from ureca.proposals.proposer import Proposer
from ureca.regions.rle import Rle, Size, box_to_rle
from ureca.regions.tree import Mask
from ureca.serving.api.backend import CaptionCall, RegionCall, Sampling
from ureca.serving.api.context import current_request
from ureca.serving.api.decode import data_url_bytes, decode_request_image, region_to_rle
from ureca.serving.api.errors import RequestError
from ureca.serving.api.fetch import fetch_image
from ureca.serving.api.schema import (
    WHOLE_IMAGE,
    RegionAnswer,
    RegionRequest,
    SamplingOptions,
    SlotError,
    Style,
    TokenLogprob,
    Usage,
    check_text,
)
from ureca.serving.settings import ImageUrls, Limits

_FORMS = ("rle", "polygon", "box", "mask_png", "points")


@dataclass(frozen=True)
class ReadImage:
    data: bytes
    """Content of the file."""
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    proposer: Proposer

    @property
    def size(self) -> Size:
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @functools.cached_property
    def proposed(self) -> tuple[Mask, ...]:
        """Regions found in the image; computed once, on first access."""
        return tuple(self.proposer(self.pixels))


ImageReader = Callable[[str], Awaitable[ReadImage]]
"""`read_image` bound to the service's settings."""


async def read_image(url: str, *, limits: Limits, urls: ImageUrls, proposer: Proposer) -> ReadImage:
    """Read an image from a data URL or, where allowed, from another URL. Raises RequestError."""
    if url[:8].lower().startswith(("http:", "https:")):
        data = await fetch_image(url, urls)
    else:
        data = await asyncio.to_thread(data_url_bytes, url)
    return ReadImage(data, await asyncio.to_thread(decode_request_image, data, limits), proposer)


def read_sampling(options: SamplingOptions, limits: Limits) -> Sampling:
    """Read the sampling parameters. Raises RequestError: more tokens than the service allows."""
    max_tokens = options.max_tokens or min(96, limits.max_tokens)
    if max_tokens > limits.max_tokens:
        raise RequestError(f"max_tokens: {max_tokens}; the limit is {limits.max_tokens}.", param="max_tokens")
    return Sampling(
        max_tokens=max_tokens, temperature=options.temperature, top_p=options.top_p, logprobs=options.logprobs
    )


@dataclass
class Answers:
    """One answer per region: first its id or its error; captions are filled in as they arrive."""

    answers: list[RegionAnswer]
    slots: list[int]
    """Indices of the answers that wait for a caption, in the order of `regions`."""
    regions: list[RegionCall]
    usage: Usage = field(default_factory=Usage)

    def call(self, image: ReadImage, sampling: Sampling, tenant: str) -> CaptionCall:
        current_request().regions = len(self.regions)
        return CaptionCall(
            image=image.pixels, digest=image.digest, regions=tuple(self.regions), sampling=sampling, tenant=tenant
        )

    def add(self, index: int, caption: Caption | RegionFault) -> RegionAnswer:
        """Fill in the caption or the error of the call's region `index`; return its answer."""
        answer = self.answers[self.slots[index]]
        if isinstance(caption, RegionFault):
            answer.error = SlotError(type="invalid_region", message=f"question: {caption.message}")
            current_request().invalid_regions += 1
            return answer
        answer.caption = caption.text
        answer.finish_reason = "length" if caption.finish_reason == "length" else "stop"
        if caption.logprobs is not None:
            answer.logprobs = [TokenLogprob(token=token, logprob=value) for token, value in caption.logprobs]
        self.usage = Usage(
            prompt_tokens=self.usage.prompt_tokens + caption.prompt_tokens,
            completion_tokens=self.usage.completion_tokens + caption.completion_tokens,
            cached_tokens=self.usage.cached_tokens + caption.cached_tokens,
        )
        return answer

    def add_whole_image(self, size: Size, style: Style) -> None:
        """Also caption the whole image, in the last slot."""
        if any(answer.id == WHOLE_IMAGE for answer in self.answers):
            raise RequestError(
                f"regions: the id {WHOLE_IMAGE!r} is reserved for the whole image with image_caption. Use another id.",
                param="regions",
            )
        self.slots.append(len(self.answers))
        self.answers.append(RegionAnswer(id=WHOLE_IMAGE))
        self.regions.append(RegionCall(box_to_rle((0, 0, size[1], size[0]), size), style))


def read_regions(regions: Sequence[RegionRequest], image: ReadImage, style: Style, limits: Limits) -> Answers:
    """Validate the regions; return the valid ones and an answer for each.

    Raises:
        RequestError: too many regions, or a repeated id.
    """
    if len(regions) > limits.max_regions:
        raise RequestError(
            f"regions: {len(regions)} regions; the limit is {limits.max_regions} per request. Send several requests; "
            "they share the image's cache.",
            status=413,
            kind="too_large",
            param="regions",
        )
    ids = [str(index if region.id is None else region.id) for index, region in enumerate(regions)]
    if twice := _first_twice(ids):
        raise RequestError(f"regions: id {twice!r} is repeated. Region ids must be unique.", param="regions")
    read = Answers([], [], [])
    for slot, (region_id, region) in enumerate(zip(ids, regions, strict=True)):
        answer = RegionAnswer(id=region_id)
        try:
            read.regions.append(_read_region(region, image, style, limits))
            read.slots.append(slot)
        except MaskError as error:
            answer.error = SlotError(type="invalid_region", message=str(error))
            current_request().invalid_regions += 1
        read.answers.append(answer)
    return read


def _read_region(region: RegionRequest, image: ReadImage, style: Style, limits: Limits) -> RegionCall:
    if region.model_extra:
        raise MaskError(f"unknown key {next(iter(region.model_extra))!r} in the region.")
    own_style = style if region.style is None else region.style
    if own_style not in get_args(Style):
        raise MaskError(f"style: {str(own_style)[:40]!r} is not one of {', '.join(get_args(Style))}.")
    question = region.question
    if question is not None and not (isinstance(question, str) and question.strip()):
        raise MaskError("question: must be a text; omit it to use the style's query.")
    if question is not None and len(question) > limits.max_question_chars:
        raise MaskError(f"question: has {len(question)} characters; the limit is {limits.max_question_chars}.")
    try:
        check_text(question or "")
    except ValueError as error:
        raise MaskError(f"question: {error}.") from error
    mask: Rle = region_to_rle({form: getattr(region, form) for form in _FORMS}, image.size, lambda: image.proposed)
    return RegionCall(mask, own_style, question.strip() if question else None)


def _first_twice(ids: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            return each
        seen.add(each)
    return None
