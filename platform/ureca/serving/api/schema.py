"""JSON schema of the API's own requests and responses, documented at /docs. OpenAI's schema is in `chat.py`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Style = Literal["brief", "detailed", "unique"]

WHOLE_IMAGE = "image"
"""Id of the answer about the whole image."""


def check_text(text: str) -> str:
    """Return the text. Raises ValueError for half of a surrogate pair, which JSON can hold and no response can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is not a character") from error
    return text


Text = Annotated[str, AfterValidator(check_text)]

IMAGE = "Data URL, data:image/jpeg;base64,… (or png, webp); or the URL of a host that the operator allowed."


class RegionRequest(BaseModel):
    """One region: an id, its mask in exactly one of five forms, and optionally a style or question.

    Errors of a region are reported in its own answer slot, so its fields are not validated here.
    """

    # Unknown keys are kept too: they become this region's error.
    model_config = ConfigDict(extra="allow")

    id: Text | int | None = Field(None, description="Returned with the caption. Default: the region's index, from 0.")
    rle: Any = Field(None, description='COCO RLE: {"size": [height, width], "counts": …}, compressed or not.')
    polygon: Any = Field(None, description="[x1, y1, x2, y2, …] in pixels, or a list of such lists.")
    box: Any = Field(None, description="[x, y, width, height] in pixels.")
    mask_png: Any = Field(
        None,
        description=(
            "Base64 of a PNG of the image's size whose single channel or alpha channel is nonzero in the region."
        ),
    )
    points: Any = Field(
        None, description="[[x, y], …] in pixels: the smallest region found in the image that contains them all."
    )
    style: Any = Field(None, description="Style in place of the request's: brief, detailed or unique.")
    question: Any = Field(None, description="Question about this region in place of the style's query.")


class SamplingOptions(BaseModel):
    """Sampling parameters of captions."""

    max_tokens: int | None = Field(None, gt=0, description="Maximum tokens per caption.")
    temperature: float = Field(0.0, ge=0.0, le=2.0, description="0: greedy decoding.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Nucleus sampling: probability mass to sample from.")
    logprobs: bool = Field(False, description="Return each token's log-probability.")


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

    model: Text | None = Field(None, description="Model of the service; default: its first.")
    image: str = Field(description=IMAGE)
    regions: list[RegionRequest] = Field(min_length=1)
    style: Style = Field(
        "unique", description=("brief: a few words; detailed: a full description; unique: fits no other region.")
    )
    image_caption: bool = Field(False, description="Also caption the whole image: `image` in the response.")
    stream: bool = Field(False, description="Respond with server-sent events, each naming its region.")


class TreeRequest(SamplingOptions):
    """One image whose regions to arrange as a tree and caption."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"image": "data:image/jpeg;base64,…", "captions": False}]}
    )

    model: Text | None = Field(None, description="Model of the service; default: its first.")
    image: str = Field(description=IMAGE)
    regions: list[RegionRequest] | None = Field(
        None, min_length=1, description="Default: regions found in the image by color."
    )
    style: Style = "unique"
    captions: bool = Field(True, description="False: only the tree, without captions.")


class FindRequest(BaseModel):
    """One image to find regions in."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"image": "data:image/jpeg;base64,…"}]})

    image: str = Field(description=IMAGE)


class SlotError(BaseModel):
    type: str
    message: str


class TokenLogprob(BaseModel):
    token: str
    logprob: float


class RegionAnswer(BaseModel):
    """A region's caption, or its error."""

    id: str
    caption: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: list[TokenLogprob] | None = None
    error: SlotError | None = None


class Usage(BaseModel):
    """Tokens of the entire request, in OpenAI's terms."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of `prompt_tokens` found in the KV cache."""


class ErrorDetail(BaseModel):
    type: str
    message: str
    param: str | None
    """Field of the request at fault."""


class ErrorResponse(BaseModel):
    """Body of every response except 200."""

    error: ErrorDetail


_RETRY_AFTER = {"Retry-After": {"description": "Seconds until a retry is worthwhile.", "schema": {"type": "string"}}}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request can't be answered; the message gives the reason."},
    503: {
        "model": ErrorResponse,
        "description": "Overloaded, or no engine at the moment: retry.",
        "headers": _RETRY_AFTER,
    },
}
"""Other responses of each call, for /docs."""

STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    # Without a schema: tools disagree whether it would describe the stream or an event.
    200: {"content": {"text/event-stream": {}}, "description": "With `stream`, server-sent events: `data: {…}`."}
}
"""The same for calls that can stream."""


class CaptionResponse(BaseModel):
    model: str
    captions: list[RegionAnswer]
    image: RegionAnswer | None = None
    usage: Usage


class TreePlace(BaseModel):
    """Position of a region in the tree and in the image."""

    parent: str | None = None
    """Id of the parent region."""
    depth: int
    area: int
    """Area in pixels."""
    bbox: list[float]
    """x, y, width, height in pixels."""
    rle: dict[str, Any]
    """Compressed COCO RLE."""


class TreeNode(RegionAnswer, TreePlace):
    """A region of the tree with its caption."""

    merged_ids: list[str]
    """Ids of near-duplicates merged into this region."""


class TreeResponse(BaseModel):
    model: str
    regions: list[TreeNode]
    """Parents before children."""
    dropped: list[RegionAnswer]
    """Regions that are not in the tree, each with its error."""
    usage: Usage


class FoundRegion(TreePlace):
    """A region found in the image."""

    id: str


class FoundRegions(BaseModel):
    regions: list[FoundRegion]
    """Parents before children."""
