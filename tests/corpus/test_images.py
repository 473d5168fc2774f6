"""Every image becomes 8-bit RGB in the frame of its masks, or is refused with the file's name and the remedy."""

import numpy as np
import pytest
from PIL import Image
from support.corpora import encoded, photo

from ureca.corpus.images import decode_image, image_sizes
from ureca.corpus.read import photos_directory
from ureca.errors import ImageError

ROTATED = 6  # EXIF orientation "turn by 90 degrees"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_eight_bit_modes_become_rgb(mode: str):
    image = Image.fromarray(photo((20, 30))).convert(mode)
    pixels = decode_image(encoded(image), where="a.png", size=(20, 30))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (30, 20), (0, 255, 255, 0))  # red ink
    pixels = decode_image(encoded(image, "JPEG"), where="a.jpg", size=(20, 30))
    np.testing.assert_allclose(pixels[10, 15], (255, 0, 0), atol=4)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(format_: str):
    wide = np.array([[0, 257, 40_000, 65_535]] * 4, dtype=np.uint16)
    pixels = decode_image(encoded(Image.fromarray(wide), format_), where="a")
    np.testing.assert_array_equal(pixels, np.repeat([[[0], [1], [156], [255]]], 3, axis=2).repeat(4, axis=0))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_reach_from_black_to_white(dtype: type):
    pixels = decode_image(encoded(Image.fromarray(np.array([[-5, 0, 5]], dtype=dtype)), "TIFF"), where="a.tif")
    assert pixels[0, :, 0].tolist() == [0, 128, 255]
    flat = decode_image(encoded(Image.fromarray(np.full((2, 2), 7, dtype=dtype)), "TIFF"), where="a.tif")
    assert not flat.any()


def test_transparent_pixels_are_white_whatever_color_they_hide():
    pixels = np.zeros((20, 30, 4), dtype=np.uint8)
    pixels[:, 15:] = (10, 20, 30, 255)
    decoded = decode_image(encoded(pixels), where="a.png")
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[0, 29].tolist() == [10, 20, 30]
    palette = Image.fromarray(np.zeros((20, 30), dtype=np.uint8), mode="L").convert("P")
    assert (decode_image(encoded(palette, transparency=0), where="a.png") == 255).all()


def test_size_says_whether_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    data = encoded(Image.fromarray(photo((20, 30))), "JPEG", exif=exif)
    assert image_sizes(data, where="a.jpg") == ((20, 30), (30, 20))
    stored = decode_image(data, where="a.jpg")
    assert stored.shape == (20, 30, 3)
    np.testing.assert_array_equal(decode_image(data, where="a.jpg", size=(20, 30)), stored)
    np.testing.assert_array_equal(decode_image(data, where="a.jpg", size=(30, 20)), np.rot90(stored, -1))
    with pytest.raises(ImageError) as error:
        decode_image(data, where="a.jpg", size=(30, 30))
    for size in ("a.jpg: ", "[20, 30]", "[30, 20]", "[30, 30]"):
        assert size in str(error.value)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_jpeg_is_refused(share: float):
    data = (photos_directory() / "rocket.jpg").read_bytes()
    cut = data[: int(len(data) * share)]
    with pytest.raises(ImageError, match=rf"^rocket.jpg: .*{len(cut)} bytes\)\. .*"):
        decode_image(cut, where="rocket.jpg")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>"])
def test_other_content_is_refused(data: bytes):
    with pytest.raises(ImageError, match="^a.jpg:.*JPEG.*PNG"):
        decode_image(data, where="a.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the module's own filter
def test_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)))  # 400 million pixels
    assert len(bomb) < 60_000
    medium = encoded(Image.new("1", (10_000, 9_000)))  # Pillow only warns
    for data in (bomb, medium):
        with pytest.raises(ImageError, match="^a.png"):
            decode_image(data, where="a.png")
    assert decode_image(medium, where="a.png", max_pixels=90_000_000).shape == (9_000, 10_000, 3)
