"""Small images as requests hold them."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60


def encoded(image: Image.Image, kind: str = "png", **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def data_url(image: Image.Image, kind: str = "png", **options: object) -> str:
    return f"data:image/{kind};base64,{encoded(image, kind, **options)}"


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file, its length and checksum as they should be."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_a_size_it_does_not_hold(width: int, height: int) -> str:
    """A PNG whose header promises more pixels than any machine has, in a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )
    return base64.b64encode(file).decode()


def with_alpha(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """RGBA; the mask is its alpha channel."""
    out = image.convert("RGBA")
    out.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
    return out
