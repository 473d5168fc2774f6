"""A picture with its captions: what is drawn is what was given."""

import numpy as np
import pytest

from ureca.regions.rle import box_to_rle
from ureca.viewer.captioned_picture import INK, RIGHT, WRONG, CaptionedRegion, captioned_picture

IMAGE = np.full((60, 90, 3), 240, np.uint8)


def region(caption: str, fits_alone: bool | None = None) -> CaptionedRegion:
    return CaptionedRegion(
        number=1,
        segmentation=box_to_rle((10, 10, 50, 40), (60, 90)),
        caption=caption,
        label="the red box",
        fits_alone=fits_alone,
    )


def has(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(color)).all(axis=2).any())


@pytest.mark.parametrize(("fits_alone", "color"), [(True, RIGHT), (False, WRONG), (None, INK)])
def test_the_caption_s_color_says_whether_it_fits_its_region_alone(fits_alone, color):
    picture = captioned_picture(IMAGE, [region("a red box", fits_alone)])
    assert picture.dtype == np.uint8
    assert has(picture, color)
    assert [each for each in (RIGHT, WRONG) if has(picture, each)] == [each for each in (color,) if each != INK]


def test_it_grows_with_its_captions_and_takes_an_empty_one():
    short = captioned_picture(IMAGE, [region("a red box")])
    long = captioned_picture(IMAGE, [region("a red box " * 400)])
    assert long.shape[0] > short.shape[0] + 200
    assert long.shape[1] == short.shape[1]
    assert captioned_picture(IMAGE, [region("")]).shape == short.shape
    assert captioned_picture(IMAGE, []).shape[2] == 3
