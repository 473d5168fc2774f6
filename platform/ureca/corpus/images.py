"""Decode image files to RGB arrays in the frame that their masks were made in.

A camera held upright stores its picture lying down, with an EXIF note to turn it. Tools differ in whether they
heed the note, so the size of the masks decides:

    masks' size        the picture is taken
    as stored          as stored
    as turned          turned, as the EXIF note says
    neither            refused
    no masks           turned where that changes its size, so that the size alone tells later what was done

What else a file may hold becomes 8-bit RGB: CMYK, gray, palette, 16 bits (scaled to 8), alpha (over white).
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ureca.errors import ConfigError, ImageError

MAX_PIXELS = 89_478_485
"""Pillow's own limit, above which it warns of a decompression bomb."""

MOST_PIXELS = 2 * MAX_PIXELS
"""Above this Pillow refuses whatever it is told."""

# Our own limit is checked right after. For good, not around each call: that is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


class ImageSizes(NamedTuple):
    """(height, width) of an image file."""

    stored: tuple[int, int]
    """As its pixels lie in the file."""
    turned: tuple[int, int]
    """As its EXIF note wants it shown; the same where there is none."""


def image_sizes(data: bytes, *, where: str, max_pixels: int = MAX_PIXELS) -> ImageSizes:
    """Both sizes of an encoded image, from its head: no pixel is decoded.

    Raises:
        ImageError: not an image, or of more than `max_pixels`.
    """
    with opened_image(data, where, max_pixels) as image:
        return _sizes(image)


def check_image_size(data: bytes, *, where: str, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an encoded image whose size `decode_image` would refuse. Its head is enough where that has the size.

    Raises:
        ImageError: not an image, of more than `max_pixels`, or not of `size`.
    """
    with opened_image(data, where, max_pixels) as image:
        if (image.height, image.width) != tuple(size):  # only then: of a PNG the EXIF note may come after its pixels
            _refuse_other_size(_sizes(image), size, where)


def decode_image(
    data: bytes, *, where: str, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """uint8 (H, W, 3), RGB, of an encoded image: as stored, unless its `size` is that of the turned picture.

    `where` opens the error's text; `size` is the (height, width) that its masks or records give.

    Raises:
        ImageError: not an image, truncated, of more than `max_pixels`, or not of `size`.
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
    """The image, not yet decoded; what Pillow raises in the body becomes an ImageError.

    Raises:
        ImageError: not an image, truncated, or of more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.height} x {image.width} pixels")
            yield image
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{where}: not an image that Pillow can read ({len(data)} bytes). Give a JPEG or PNG file."
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
    """Refuse a limit that can't be kept.

    Raises:
        ConfigError: not from 1 to `MOST_PIXELS`.
    """
    if not 1 <= max_pixels <= MOST_PIXELS:
        raise ConfigError(f"max_pixels={max_pixels}: give 1 to {MOST_PIXELS}, the most that Pillow opens")


def _sizes(image: Image.Image) -> ImageSizes:
    height, width = image.height, image.width
    turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
    return ImageSizes((height, width), (width, height) if turned else (height, width))


def _refuse_other_size(sizes: ImageSizes, size: tuple[int, int], where: str) -> None:
    if tuple(size) not in sizes:
        raise ImageError(
            f"{where}: the image is {list(sizes.stored)} (height, width)"
            + (f", or {list(sizes.turned)} as EXIF turns it" if sizes.turned != sizes.stored else "")
            + f", its records say {list(size)}. "
            "Masks and image must be of one size: encode the masks at the image's size."
        )


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):  # 32 bits, of no agreed range: darkest to brightest
        wide = np.nan_to_num(np.asarray(image, dtype=np.float64))
        spread = wide.max() - wide.min()
        return Image.fromarray(np.uint8(255 * (wide - wide.min()) / (spread or 1) + 0.5)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
