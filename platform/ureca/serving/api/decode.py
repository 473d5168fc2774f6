"""Decode a request's image and masks, with every limit checked before memory is allocated.

image    data URL -> file -> uint8 (H, W, 3) RGB, as stored (EXIF rotation is not applied: masks refer to stored pixels)
region   rle | polygon | box | mask_png | points -> COCO RLE of the image's size
"""

import base64
import binascii
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ureca.corpus.images import decode_image
from ureca.errors import ImageError, MaskError
from ureca.regions.rle import Rle, Size, box_to_rle, check_rle, decode_rle, encode_mask, polygon_to_rle, rle_area
from ureca.regions.tree import Mask
from ureca.serving.api.errors import RequestError
from ureca.serving.settings import Limits

IMAGE_TYPES = ("jpeg", "png", "webp")
_DATA_URL = re.compile(r"data:image/(?P<type>[\w.+-]+);base64,", re.ASCII)
_FORMS = ("rle", "polygon", "box", "mask_png", "points")
_MAX_POINTS = 64
# pycocotools rasterizes polygon edges in steps of a fifth of a pixel and keeps every step.
_MAX_PERIMETERS = 200


def data_url_bytes(url: str) -> bytes:
    """Return the file in a `data:image/…;base64,` URL.

    Raises:
        RequestError: another kind of URL, another image type, or invalid base64.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise _bad_image("image: is not a data URL. Send the file itself: data:image/jpeg;base64,…")
    if match["type"] not in IMAGE_TYPES:
        raise _bad_image(f"image: has type image/{match['type']}. Supported: {', '.join(IMAGE_TYPES)}.")
    data = _from_base64(url[match.end() :])
    if data is None:
        raise _bad_image("image: invalid base64. Encode the whole file, without line breaks.")
    return data


def decode_request_image(data: bytes, limits: Limits) -> np.ndarray:
    """Decode an image file to uint8 (H, W, 3) RGB.

    Raises:
        RequestError: unsupported type, too many pixels, too small, too thin, or damaged.
    """
    width, height = _check_header(data, limits)
    try:
        return decode_image(data, where="image", size=(height, width))
    except ImageError as error:
        raise _bad_image(str(error)) from error


def _check_header(data: bytes, limits: Limits) -> tuple[int, int]:
    """Return (width, height) from the file's header, checked against the limits."""
    try:
        with Image.open(io.BytesIO(data), formats=[name.upper() for name in IMAGE_TYPES]) as image:
            width, height = image.size
            frames = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise _too_large(f"image: {error}".rstrip(".")) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise _bad_image(f"image: not a readable {', '.join(IMAGE_TYPES)} file ({len(data)} bytes)") from error
    if width * height > limits.max_image_pixels:
        raise _too_large(f"image: {width} x {height} pixels; the limit is {limits.max_image_pixels} pixels")
    if min(width, height) < limits.min_image_side_px:
        raise _bad_image(f"image: {width} x {height} pixels; both sides must have at least {limits.min_image_side_px}.")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise _bad_image(
            f"image: {width} x {height} pixels; one side may be at most {limits.max_aspect_ratio:g} times the other."
        )
    if frames != 1:
        raise _bad_image(f"image: has {frames} frames. Send one frame.")
    return width, height


def region_to_rle(region: Mapping[str, Any], size: Size, propose: Callable[[], Sequence[Mask]]) -> Rle:
    """Return a region's mask, given in exactly one of five forms, as an RLE of `size` (height, width).

    rle: COCO RLE, compressed or not; polygon: [x1, y1, x2, y2, …] or several; box: [x, y, width, height]; mask_png:
    base64 (or data URL) of a PNG of the image's size whose single channel, or alpha channel, is nonzero in the region;
    points: [[x, y], …], the smallest proposed region that contains them all.

    Args:
        propose: returns the image's proposed regions; called for `points` only.

    Raises:
        MaskError: no form or several, a malformed one, another size, or no pixel.
    """
    given = [form for form in _FORMS if region.get(form) is not None]
    if len(given) != 1:
        raise MaskError(
            f"region has {' and '.join(given) or 'no mask'}: it must have exactly one of {', '.join(_FORMS)}."
        )
    value = region[given[0]]
    if given[0] == "rle":
        if not isinstance(value, Mapping):
            raise MaskError("rle: must be a COCO RLE with size [height, width] and counts.")
        return check_rle(value, size, where="rle")
    if given[0] == "box":
        return _box(value, size)
    if given[0] == "polygon":
        return _polygon(value, size)
    if given[0] == "points":
        return _smallest_containing(_points(value, size), propose())
    return _mask_png(value, size)


def _points(value: Any, size: Size) -> list[tuple[int, int]]:
    """Return (row, column) of the pixels that contain the points."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value or len(value) > _MAX_POINTS:
        raise MaskError(f"points: must be 1 to {_MAX_POINTS} points, [[x, y], …] in pixels.")
    places = []
    for point in value:
        if not isinstance(point, Sequence) or len(point) != 2 or not all(_is_number(each) for each in point):
            raise MaskError("points: each must be two numbers, [x, y] in pixels.")
        x, y = (math.floor(each) for each in point)
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise MaskError(f"points: [{point[0]:g}, {point[1]:g}] is outside the image of {list(size)} (h, w).")
        places.append((y, x))
    return places


def _smallest_containing(places: Sequence[tuple[int, int]], proposed: Sequence[Mask]) -> Rle:
    """Return the smallest proposed region that contains all pixels."""
    for mask in sorted(proposed, key=lambda each: rle_area(each.segmentation)):
        inside = decode_rle(mask.segmentation)
        if all(inside[place] for place in places):
            return mask.segmentation
    raise MaskError(
        f"points: none of the {len(proposed)} regions proposed for this image contains all {len(places)}. Send fewer "
        "points, or the region's box or mask."
    )


def _box(value: Any, size: Size) -> Rle:
    if not isinstance(value, Sequence) or len(value) != 4 or not all(_is_number(each) for each in value):
        raise MaskError("box: must be four numbers, [x, y, width, height] in pixels.")
    x, y, width, height = (float(each) for each in value)
    if not (width > 0 and height > 0):
        raise MaskError(f"box: width {width:g}, height {height:g}; both must be above 0: [x, y, width, height].")
    return box_to_rle((x, y, x + width, y + height), size)


def _polygon(value: Any, size: Size) -> Rle:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise MaskError("polygon: must be [x1, y1, x2, y2, x3, y3, …] in pixels, or a list of such lists.")
    try:
        parts = value if isinstance(value[0], Sequence) else [value]
        flat = [np.asarray(part, dtype=np.float64).ravel() for part in parts]
        perimeter = sum(
            float(np.abs(np.diff(part[: len(part) // 2 * 2].reshape(-1, 2), axis=0)).sum()) for part in flat
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise MaskError("polygon: holds values that are not numbers.") from error
    if not math.isfinite(perimeter) or perimeter > _MAX_PERIMETERS * sum(size):
        raise MaskError(
            f"polygon: its edges add up to {perimeter:.3g} pixels in an image of {list(size)} (height, width). Send "
            "such a mask as rle or mask_png."
        )
    return polygon_to_rle(value, size)


def _mask_png(value: Any, size: Size) -> Rle:
    data = _from_base64(value.removeprefix("data:image/png;base64,")) if isinstance(value, str) else None
    if data is None:
        raise MaskError("mask_png: invalid base64. Encode the PNG file, without line breaks.")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if (image.height, image.width) != size:
                raise MaskError(
                    f"mask_png: {[image.height, image.width]} (height, width), its image is {list(size)}. "
                    "Draw the mask at the image's stored size."
                )
            bands = image.getbands()
            if len(bands) == 1:
                mask = np.asarray(image) != 0
            elif "A" in bands:
                mask = np.asarray(image.getchannel("A")) != 0
            else:
                raise MaskError(
                    f"mask_png: has channels {', '.join(bands)}. Send one channel (gray), or an alpha channel, that "
                    "is nonzero in the region."
                )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MaskError(f"mask_png: not a readable PNG file ({len(data)} bytes).") from error
    if not mask.any():
        raise MaskError("mask_png: every pixel is 0. The region must be nonzero.")
    return encode_mask(mask)


def alpha_mask(data: bytes) -> Rle | None:
    """Return the region marked by an image file's alpha channel (nonzero pixels); None without one.

    NVIDIA's Describe Anything server takes regions this way, as one RGBA PNG. Decode the file with
    `decode_request_image` first, which checks its size.

    Raises:
        MaskError: the alpha channel is 0 everywhere.
    """
    with Image.open(io.BytesIO(data)) as image:
        if "A" not in image.getbands():
            return None
        mask = np.asarray(image.getchannel("A")) != 0
    if not mask.any():
        raise MaskError("image: its alpha channel, which marks the region, is 0 everywhere.")
    return encode_mask(mask)


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _is_number(value: Any) -> bool:
    # Larger coordinates are invalid, and integers in JSON may exceed a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _too_large(finding: str) -> RequestError:
    remedy = "Scale the image and its masks down."
    return RequestError(f"{finding}. {remedy}", status=413, kind="too_large", param="image")


def _bad_image(message: str) -> RequestError:
    return RequestError(message, kind="invalid_image", param="image")
