"""Views for a model: the right region is marked, and nothing else is sharp."""

import numpy as np
import pytest
from support.describe_requests import BOXES, SEGMENTATIONS, SIZE, picture

from ureca.labeling.describers.views import BLUE, YELLOW, ViewConfig, context_view, crop_view, image_view, marks_view
from ureca.regions.rle import box_to_rle, encode_mask

CONFIG = ViewConfig()


def noise(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)


def has_color(view: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (view == np.array(color)).all(-1)


def test_crop_is_the_region_sharp_with_a_margin_and_the_rest_blurred():
    image = noise()
    left, top, right, bottom = BOXES[0]
    margin_x = 20  # a tenth of its width; above and below the margin of 26 px is cut off by the image
    view = np.asarray(crop_view(image, SEGMENTATIONS[0], CONFIG)).astype(int)
    assert view.shape == (300, 240, 3)
    assert np.array_equal(view[top:bottom, margin_x:-margin_x], image[top:bottom, left:right])
    assert view[:, :margin_x].std() < 0.3 * image.std()


def test_thin_regions_get_a_readable_crop():
    thin = box_to_rle((100, 150, 300, 152), SIZE)
    assert crop_view(noise(), thin, CONFIG).size == (240, 34), "two pixels and sixteen on each side"
    assert crop_view(noise(), thin, ViewConfig(margin=0.0, margin_px=0)).size == (224, 2)


def test_small_crops_are_enlarged_and_large_views_shrunk():
    small = crop_view(noise(), SEGMENTATIONS[3], CONFIG)
    assert max(small.size) == 224
    large = image_view(noise((1500, 2250)), box_to_rle((0, 0, 700, 700), (1500, 2250)), CONFIG)
    assert large.size == (896, 597)


def test_outline_runs_around_the_region_and_leaves_its_pixels_alone():
    image = picture()
    view = np.asarray(image_view(image, SEGMENTATIONS[1], CONFIG))
    line = has_color(view, YELLOW)
    left, top, right, bottom = BOXES[1]
    rows, columns = np.nonzero(line)
    assert (rows.min(), columns.min()) == (top - 2, left - 2)
    assert (rows.max(), columns.max()) == (bottom + 1, right + 1)
    assert np.array_equal(view[top:bottom, left:right], image[top:bottom, left:right])
    assert line[top - 1, left:right].all()
    assert line[bottom, left:right].all()


def test_outline_follows_holes_and_the_border_of_the_image():
    mask = np.zeros(SIZE, bool)
    mask[:200, :200] = True
    mask[80:120, 80:120] = False
    line = has_color(np.asarray(image_view(picture(), encode_mask(mask), CONFIG)), YELLOW)
    assert line[81, 100], "around the hole, inside of it"
    assert line[0, 100], "where the region ends with the image"
    assert not line[50, 50]


def test_context_blurs_all_but_the_parent():
    image = noise()
    view = np.asarray(context_view(image, SEGMENTATIONS[1], SEGMENTATIONS[0], CONFIG)).astype(int)
    assert view.shape[:2] == (300, 240), "the parent's box with its margin"
    assert np.array_equal(view[200:270, 30:210], image[200:270, 30:210]), "the parent stays sharp"
    assert view[:, 224:].std() < 0.3 * image.std()
    assert has_color(view, YELLOW).any()


def test_marks_have_a_color_and_a_number_each_and_only_the_target_is_blue():
    marked = [SEGMENTATIONS[index] for index in (1, 2, 4)]
    view = np.asarray(marks_view(picture(), marked, CONFIG, target_first=True))
    rows, columns = np.nonzero(has_color(view, BLUE))
    left, top = 6, 14  # of the view in the image: the union of the boxes less its margins
    assert (rows.min(), columns.min()) == (40 - top - 2, 40 - left - 2)
    assert (rows.max(), columns.max()) == (120 - top + 1, 120 - left + 1)
    blind = np.asarray(marks_view(picture(), marked, CONFIG, target_first=False))
    assert not has_color(blind, BLUE).any(), "nothing may reveal the right answer"
    for view_of_three in (view, blind):
        white = has_color(view_of_three, (255, 255, 255))
        assert white.sum() >= 10, "a number on each of the three plates"


def test_target_keeps_its_color_among_many():
    many = [box_to_rle((10 + 30 * (i % 10), 10 + 60 * (i // 10), 30 + 30 * (i % 10), 50 + 60 * (i // 10)), SIZE)
            for i in range(30)]  # fmt: skip
    view = np.asarray(marks_view(picture(), many, CONFIG, target_first=True))
    rows, columns = np.nonzero(has_color(view, BLUE))
    assert columns.max() < 40, "blue is around the first region alone; the margin is cut off by the image"
    assert rows.max() < 80, "its plate included, which stands below it"


@pytest.mark.parametrize("box", [(380, 280, 384, 296), (0, 0, 5, 5), (395, 295, 400, 300)])
def test_a_number_never_covers_a_small_region(box):
    image = picture()
    region = box_to_rle(box, SIZE)
    config = ViewConfig(margin_px=60)
    view = np.asarray(marks_view(image, [region], config, target_first=True))
    plate = has_color(view, (0, 0, 0))
    scale = view.shape[1] / (min(400, box[2] + 60) - max(0, box[0] - 60))
    left = round((box[0] - max(0, box[0] - 60)) * scale)
    top = round((box[1] - max(0, box[1] - 60)) * scale)
    inside = plate[top + 2 : top + round(5 * scale) - 2, left + 2 : left + round((box[2] - box[0]) * scale) - 2]
    assert inside.size
    assert not inside.any()


def test_regions_too_thin_for_the_view_are_still_marked():
    size = (1500, 2000)
    image = np.full((*size, 3), 100, np.uint8)
    line = box_to_rle((1000, 100, 1001, 1400), size)
    assert has_color(np.asarray(image_view(image, line, CONFIG)), YELLOW).sum() > 500
