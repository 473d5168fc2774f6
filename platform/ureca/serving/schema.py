"""The JSON that goes in and out of `POST /v1/captions`; FastAPI documents it at /docs."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CaptionRequest", "CaptionResponse", "RegionAnswer", "RegionRequest", "Usage"]


class RegionRequest(BaseModel):
    """One region: an id, and its mask in exactly one of four forms.

    What is wrong with a region is told in its own slot of the answer, so its form is not checked here.
    """

    # Unknown keys too: they end as this region's error.
    model_config = ConfigDict(extra="allow")

    id: str | int | None = Field(None, description="Returned with the caption. Default: its number, from 0.")
    rle: Any = Field(None, description='COCO RLE: {"size": [height, width], "counts": …}, compressed or not.')
    polygon: Any = Field(None, description="[x1, y1, x2, y2, …] in pixels, or a list of such lists.")
    box: Any = Field(None, description="[x, y, width, height] in pixels.")
    mask_png: Any = Field(None, description="Base64 of a one-channel PNG of the image's size; not 0 inside.")


class CaptionRequest(BaseModel):
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

    image: str = Field(description="A data URL: data:image/jpeg;base64,… (or png, webp).")
    regions: list[RegionRequest] = Field(min_length=1)
    style: Literal["brief", "detailed", "unique"] = Field(
        "unique", description="A few words, all there is to say, or what fits no other region of the image."
    )
    stream: bool = Field(False, description="Answer with server-sent events, each naming its region.")
    max_tokens: int | None = Field(None, gt=0, description="Most tokens of one caption.")
    temperature: float = Field(0.0, ge=0.0, le=2.0, description="0: the likeliest token each time.")


class SlotError(BaseModel):
    type: str
    message: str


class RegionAnswer(BaseModel):
    """One region's caption, or what was wrong with the region."""

    id: str
    caption: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    error: SlotError | None = None


class Usage(BaseModel):
    """Tokens of the whole request, in OpenAI's words."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of `prompt_tokens`: found in the KV cache, so not computed."""


class CaptionResponse(BaseModel):
    model: str
    captions: list[RegionAnswer]
    usage: Usage
