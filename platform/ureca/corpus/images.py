"""Decode image files to RGB arrays, refusing what would silently come out wrong."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from ureca.errors import ImageError

_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_EXIF_ORIENTATION = 0x0112


def decode_image(data: bytes, *, where: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 (H, W, 3), RGB, of an encoded image, as stored: EXIF rotation is not applied.

    `where` opens the error's text; `size` is the (height, width) that its records give.

    Raises:
        ImageError: not an image, truncated, more than 8 bits a channel, too large, or not of `size`.
    """
    try:
        with warnings.catch_warnings():
            # Pillow only warns between its pixel limit and twice of it; both are refused here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
                found = (image.height, image.width)
                if image.mode not in _EIGHT_BIT_MODES:
                    raise ImageError(
                        f"{where}: an image of Pillow's mode {image.mode}, which has no 8-bit channels. "
                        "Convert it to an 8-bit RGB image."
                    )
                pixels = np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{where}: not an image that Pillow can read ({len(data)} bytes). Give a JPEG or PNG file."
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"{where}: too large ({error}). Scale the image and its masks down.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            f"{where}: the image can't be decoded ({error}; {len(data)} bytes). Copy or download it again."
        ) from error
    if size is not None and found != tuple(size):
        rotated = f" The file has EXIF orientation {orientation}, which is not applied." if orientation != 1 else ""
        raise ImageError(
            f"{where}: the image is {list(found)} (height, width), its records say {list(size)}.{rotated} "
            "Masks and image must be of one size: encode the masks at the image's stored size."
        )
    return pixels
