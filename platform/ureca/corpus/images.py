"""Decode image files to RGB arrays in the orientation that their masks refer to.

Cameras store upright photos lying on their side, with an EXIF orientation. Tools differ in whether they apply it, so
the size of the masks decides:

    masks' size        orientation of the image
    as stored          as stored
    as rotated         rotated by its EXIF orientation
    neither            refused
    no masks           rotated if that changes the size, so that the size alone later shows what was done

All other pixel formats become 8-bit RGB: CMYK, gray, palette, 16 bits (scaled to 8), alpha (over white).
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ureca.errors import ConfigError, ImageError

DEFAULT_MAX_PIXELS = 89_478_485
"""Pillow's limit, above which it warns of a decompression bomb."""

PIXEL_LIMIT = 2 * DEFAULT_MAX_PIXELS
"""Pillow's hard limit, above which it always refuses."""

# Our own limit is checked right after. Set globally, because setting it per call is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


class ImageSizes(NamedTuple):
    """(height, width) of an image file, as stored and as rotated."""

    stored: tuple[int, int]
    """Size of the stored pixels."""
    rotated: tuple[int, int]
    """Size after the EXIF rotation; equal to `stored` without one."""


def image_sizes(data: bytes, *, where: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageSizes:
    """Read both sizes of an encoded image from its header, without decoding pixels.

    Raises:
        ImageError: not an image, or more than `max_pixels`.
    """
    with opened_image(data, where, max_pixels) as image:
        return _sizes(image)


def check_image_size(data: bytes, *, where: str, size: tuple[int, int], max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Refuse an encoded image whose size `decode_image` would refuse. The header is enough if it has the expected size.

    Raises:
        ImageError: not an image, more than `max_pixels`, or not of `size`.
    """
    with opened_image(data, where, max_pixels) as image:
        if (image.height, image.width) != tuple(size):  # only then: a PNG's EXIF may come after its pixels
            _refuse_other_size(_sizes(image), size, where)


def decode_image(
    data: bytes, *, where: str, size: tuple[int, int] | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """Decode an image to uint8 (H, W, 3), RGB: as stored, or rotated if only that matches `size`.

    `where` prefixes error messages; `size` is the (height, width) from its masks or records.

    Raises:
        ImageError: not an image, truncated, more than `max_pixels`, or not of `size`.
    """
    with opened_image(data, where, max_pixels) as image:
        sizes = _sizes(image)
        if size is not None:
            _refuse_other_size(sizes, size, where)
        if size is not None and tuple(size) != sizes.stored:
            image = ImageOps.exif_transpose(image)
        return np.array(_as_rgb(image))


@contextlib.contextmanager
def opened_image(data: bytes, where: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image without decoding it; Pillow's errors in the body become ImageError.

    Raises:
        ImageError: not an image, truncated, or more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.height} x {image.width} pixels")
            yield image
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{where}: not an image that Pillow can read ({len(data)} bytes). Use a JPEG or PNG file."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{where}: too large ({error}; the limit is {max_pixels} pixels). "
            "Scale the image and its masks down, or raise max_pixels if you trust the file."
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            f"{where}: the image can't be decoded ({error}; {len(data)} bytes). Copy or download it again."
        ) from error


def check_max_pixels(max_pixels: int) -> None:
    """Refuse a limit that Pillow can't honor.

    Raises:
        ConfigError: not between 1 and the hard limit.
    """
    if not 1 <= max_pixels <= PIXEL_LIMIT:
        raise ConfigError(f"max_pixels={max_pixels}: must be between 1 and {PIXEL_LIMIT}, Pillow's hard limit")


def _sizes(image: Image.Image) -> ImageSizes:
    height, width = image.height, image.width
    rotated = image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
    return ImageSizes((height, width), (width, height) if rotated else (height, width))


def _refuse_other_size(sizes: ImageSizes, size: tuple[int, int], where: str) -> None:
    if tuple(size) not in sizes:
        raise ImageError(
            f"{where}: the image is {list(sizes.stored)} (height, width)"
            + (f", or {list(sizes.rotated)} after EXIF rotation" if sizes.rotated != sizes.stored else "")
            + f", but its records have {list(size)}. Masks and image must have the same size: encode the masks at the "
            "image's size."
        )


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):  # 32 bits without a standard range: scale from darkest to brightest
        wide = np.nan_to_num(np.asarray(image, dtype=np.float64))
        spread = wide.max() - wide.min()
        return Image.fromarray(np.uint8(255 * (wide - wide.min()) / (spread or 1) + 0.5)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
