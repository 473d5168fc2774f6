"""Images are decoded as stored, or refused with the file's name and the remedy."""

import io

import numpy as np
import pytest
from PIL import Image

from ureca.corpus import decode_image, photos_directory
from ureca.errors import ImageError

ROTATED = 6  # EXIF orientation "turn by 90 degrees"


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_eight_bit_modes_become_rgb(mode: str):
    image = Image.fromarray(gradient()).convert(mode)
    pixels = decode_image(encoded(image), where="a.png", size=(20, 30))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_exif_rotation_is_not_applied_and_named_where_sizes_differ():
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    data = encoded(Image.fromarray(gradient(20, 30)), "JPEG", exif=exif)
    assert decode_image(data, where="a.jpg").shape == (20, 30, 3)
    with pytest.raises(ImageError) as error:
        decode_image(data, where="a.jpg", size=(30, 20))
    assert str(error.value) == (
        "a.jpg: the image is [20, 30] (height, width), its records say [30, 20]. "
        "The file has EXIF orientation 6, which is not applied. "
        "Masks and image must be of one size: encode the masks at the image's stored size."
    )


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_jpeg_is_refused(share: float):
    data = (photos_directory() / "rocket.jpg").read_bytes()
    cut = data[: int(len(data) * share)]
    with pytest.raises(ImageError, match=rf"^rocket.jpg: .*{len(cut)} bytes\)\. .*"):
        decode_image(cut, where="rocket.jpg")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>"])
def test_other_content_is_refused(data: bytes):
    with pytest.raises(ImageError, match=r"^a.jpg: not an image that Pillow can read .* Give a JPEG or PNG file"):
        decode_image(data, where="a.jpg")


def test_sixteen_bit_image_is_refused_instead_of_clipped():
    image = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    with pytest.raises(ImageError, match="Pillow's mode I;16, which has no 8-bit channels"):
        decode_image(encoded(image), where="a.png")


def test_image_beyond_the_pixel_limit_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for height, width in ((20, 30), (200, 300)):  # where Pillow only warns, and where it refuses
        with pytest.raises(ImageError, match="too large .* Scale the image and its masks down"):
            decode_image(encoded(Image.fromarray(gradient(height, width))), where="a.png")
