"""The JSON that goes in and out of the API's own calls; FastAPI documents it at /docs. OpenAI's stand in `chat.py`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Style = Literal["brief", "detailed", "unique"]

WHOLE_IMAGE = "image"
"""Id of the answer about the whole image."""


def check_text(text: str) -> str:
    """The text. Raises ValueError where it is none: JSON can hold half of a surrogate pair, which no answer can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which stands for no character") from error
    return text


Text = Annotated[str, AfterValidator(check_text)]

IMAGE = "A data URL, data:image/jpeg;base64,… (or png, webp); or a URL of a host that the service's owner allowed."


class RegionRequest(BaseModel):
    """One region: an id, its mask in exactly one of five forms, and what to ask about it.

    What is wrong with a region is told in its own slot of the answer, so its form is not checked here.
    """

    # Unknown keys too: they end as this region's error.
    model_config = ConfigDict(extra="allow")

    id: Text | int | None = Field(None, description="Returned with the caption. Default: its number, from 0.")
    rle: Any = Field(None, description='COCO RLE: {"size": [height, width], "counts": …}, compressed or not.')
    polygon: Any = Field(None, description="[x1, y1, x2, y2, …] in pixels, or a list of such lists.")
    box: Any = Field(None, description="[x, y, width, height] in pixels.")
    mask_png: Any = Field(
        None,
        description="Base64 of a PNG of the image's size: one channel, or an alpha channel, not 0 inside.",
    )
    points: Any = Field(
        None, description="[[x, y], …] in pixels: the smallest of the regions found in the image that holds them all."
    )
    style: Any = Field(None, description="In place of the request's: brief, detailed or unique.")
    question: Any = Field(None, description="A question of your own about this region, in place of the style's.")


class SamplingOptions(BaseModel):
    """How captions are drawn from the model."""

    max_tokens: int | None = Field(None, gt=0, description="Most tokens of one caption.")
    temperature: float = Field(0.0, ge=0.0, le=2.0, description="0: the likeliest token each time.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Share of the probability that tokens are drawn from.")
    logprobs: bool = Field(False, description="Tell each token's log-probability.")


class CaptionRequest(SamplingOptions):
    """One image and the regions to caption."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "image": "data:image/jpeg;base64,…",
                    "regions": [{"id": "7", "box": [40, 30, 200, 120]}],
                    "style": "unique",
                }
            ]
        },
    )

    model: Text | None = Field(None, description="Which of the service's models; default: its first.")
    image: str = Field(description=IMAGE)
    regions: list[RegionRequest] = Field(min_length=1)
    style: Style = Field("unique", description="A few words, all there is to say, or what fits no other region.")
    image_caption: bool = Field(False, description="Caption the whole image too: `image` in the answer.")
    stream: bool = Field(False, description="Answer with server-sent events, each naming its region.")


class TreeRequest(SamplingOptions):
    """One image, whose regions are put in a tree (which is part of which) and captioned."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"image": "data:image/jpeg;base64,…", "captions": False}]}
    )

    model: Text | None = Field(None, description="Which of the service's models; default: its first.")
    image: str = Field(description=IMAGE)
    regions: list[RegionRequest] | None = Field(
        None, min_length=1, description="Default: the regions that are found in the image by their looks."
    )
    style: Style = "unique"
    captions: bool = Field(True, description="False: the tree alone, at once.")


class FindRequest(BaseModel):
    """One image, whose regions are to be found."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"image": "data:image/jpeg;base64,…"}]})

    image: str = Field(description=IMAGE)


class SlotError(BaseModel):
    type: str
    message: str


class TokenLogprob(BaseModel):
    token: str
    logprob: float


class RegionAnswer(BaseModel):
    """One region's caption, or what was wrong with the region."""

    id: str
    caption: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: list[TokenLogprob] | None = None
    error: SlotError | None = None


class Usage(BaseModel):
    """Tokens of the whole request, in OpenAI's words."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of `prompt_tokens`: found in the KV cache, so not computed."""


class ErrorDetail(BaseModel):
    type: str
    message: str
    param: str | None
    """Which field of the request is meant."""


class ErrorResponse(BaseModel):
    """Of every answer that is no 200."""

    error: ErrorDetail


_RETRY_AFTER = {"Retry-After": {"description": "Seconds until it is worth trying again.", "schema": {"type": "string"}}}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request can't be answered as it is; the message says why."},
    503: {
        "model": ErrorResponse,
        "description": "Too much to do, or no engine at the moment: try again.",
        "headers": _RETRY_AFTER,
    },
}
"""How /docs describes what else may come, of each call."""

STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    # Without a schema: tools don't agree whether it would be that of the whole stream or of an event.
    200: {"content": {"text/event-stream": {}}, "description": "With `stream`, server-sent events: `data: {…}`."}
}
"""The same, of a call that can answer piece by piece."""


class CaptionResponse(BaseModel):
    model: str
    captions: list[RegionAnswer]
    image: RegionAnswer | None = None
    usage: Usage


class TreePlace(BaseModel):
    """Where a region is in the tree, and in the image."""

    parent: str | None = None
    """Id of the region that it is part of."""
    depth: int
    area: int
    """Pixels."""
    bbox: list[float]
    """x, y, width, height in pixels."""
    rle: dict[str, Any]
    """COCO's compressed RLE."""


class TreeNode(RegionAnswer, TreePlace):
    """A region in its place in the tree."""

    merged_ids: list[str]
    """Ids of near-duplicates that this region stands for."""


class TreeResponse(BaseModel):
    model: str
    regions: list[TreeNode]
    """Parents before children."""
    dropped: list[RegionAnswer]
    """Regions that are not in the tree, each with its error."""
    usage: Usage


class FoundRegion(TreePlace):
    """A region that was found in the image."""

    id: str


class FoundRegions(BaseModel):
    regions: list[FoundRegion]
    """Parents before children."""
