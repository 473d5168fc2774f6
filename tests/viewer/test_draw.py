import re

import numpy as np
import pytest

from ureca.regions.rle import encode_mask
from ureca.viewer.draw import draw_regions, nested_list, outline, region_color, to_css, to_size


def disk(size, center, radius):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2


def area_of_path(d):
    """Area inside an SVG path of straight lines, holes subtracted (shoelace formula)."""
    total = 0.0
    for part in d.split("Z")[:-1]:
        points = np.array([[float(v) for v in point.split(",")] for point in part[1:].split(" ")])
        x, y = points[:, 0], points[:, 1]
        total += float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return abs(total)


def gray(size=(120, 200)):
    return np.full((*size, 3), 128, np.uint8)


def test_only_the_region_and_its_rim_are_touched():
    mask = disk((120, 200), (60, 80), 30)
    drawn = draw_regions(gray(), {1: encode_mask(mask)}, longest_px=200)
    assert drawn.shape == (120, 200, 3)
    outside = ~disk((120, 200), (60, 80), 33)
    assert (drawn[outside] == 128).all()
    assert (drawn[disk((120, 200), (60, 80), 27)] != 128).any(axis=1).all()


def test_a_pixel_takes_the_color_of_the_smallest_region_over_it():
    large, small = disk((120, 200), (60, 80), 40), disk((120, 200), (60, 80), 12)
    segmentations = {1: encode_mask(large), 2: encode_mask(small)}
    drawn = draw_regions(gray(), segmentations, longest_px=200, numbers=False).astype(int)
    toward = {number: np.sign(np.array(region_color(number)) - 128) for number in (1, 2)}
    assert (np.sign(drawn[60, 80] - 128) == toward[2]).all()
    assert (np.sign(drawn[60, 50] - 128) == toward[1]).all()


def test_numbers_stand_in_their_own_regions_and_apart():
    left, right = disk((120, 200), (60, 40), 30), disk((120, 200), (60, 150), 30)
    segmentations = {1: encode_mask(left), 2: encode_mask(right)}
    plain = draw_regions(gray(), segmentations, longest_px=400, numbers=False).astype(int)
    changed = (draw_regions(gray(), segmentations, longest_px=400).astype(int) != plain).any(axis=2)
    inside = {1: np.kron(left, np.ones((2, 2), bool)), 2: np.kron(right, np.ones((2, 2), bool))}
    assert all((changed & mask).sum() > 100 for mask in inside.values()), "a badge in each"
    assert not (changed & ~(inside[1] | inside[2])).any(), "and nowhere else"


def test_even_a_region_of_one_pixel_is_drawn():
    mask = np.zeros((900, 1500), bool)
    mask[450, 700] = True
    drawn = draw_regions(gray((900, 1500)), {1: encode_mask(mask)}, longest_px=300)
    assert (drawn != 128).any()


def test_a_region_wholly_covered_by_its_parts_is_drawn_without_a_number():
    mask = encode_mask(disk((120, 200), (60, 80), 30))
    drawn = draw_regions(gray(), {1: mask, 2: mask}, longest_px=200)
    assert (drawn != 128).any()


def test_same_input_same_picture():
    segmentations = {1: encode_mask(disk((120, 200), (60, 80), 30))}
    assert (draw_regions(gray(), segmentations) == draw_regions(gray(), segmentations)).all()


@pytest.mark.parametrize(("hole", "touches_border"), [(0, False), (12, False), (0, True)])
def test_outline_encloses_the_area_of_the_mask(hole, touches_border):
    mask = disk((300, 400), (0 if touches_border else 150, 200), 100)
    if hole:
        mask &= ~disk((300, 400), (150, 200), hole * 4)
    path = outline(encode_mask(mask), longest_px=400)
    assert area_of_path(path) == pytest.approx(mask.sum(), rel=0.02)
    assert path.count("M") == (2 if hole else 1)


def test_outline_is_short_and_scales_with_the_picture():
    rle = encode_mask(disk((1200, 1600), (600, 800), 400))
    path = outline(rle, longest_px=400)
    assert len(path) < 800
    points = np.array([[float(v) for v in point.split(",")] for point in re.findall(r"[\d.]+,[\d.]+", path)])
    assert points.min(axis=0).tolist() == pytest.approx([100, 50], abs=1.5)
    assert points.max(axis=0).tolist() == pytest.approx([300, 250], abs=1.5)


def test_a_region_thinner_than_a_pixel_still_has_an_outline():
    mask = np.zeros((2000, 2000), bool)
    mask[1000, 300:1700] = True
    assert outline(encode_mask(mask), longest_px=400)


def test_neighboring_numbers_have_colors_far_apart():
    colors = np.array([region_color(number) for number in range(1, 31)], float)
    assert min(np.linalg.norm(one - other) for one, other in zip(colors, colors[1:], strict=False)) > 100
    assert len({tuple(color) for color in colors}) == 30
    assert re.fullmatch(r"#[0-9a-f]{6}", to_css(region_color(1)))


def test_to_size_keeps_proportions():
    assert to_size((1500, 2250), 800) == (533, 800)
    assert to_size((256, 256), 512) == (512, 512)
    assert to_size((1, 4000), 100) == (1, 100)


def test_nested_list_is_the_tree():
    html = nested_list([-1, 0, 1, -1, 0], list("abcde"))
    assert html == "<ul><li>a<ul><li>b<ul><li>c</li></ul></li><li>e</li></ul></li><li>d</li></ul>"
    assert nested_list([], []) == ""


def test_a_parent_after_its_child_is_refused():
    with pytest.raises(ValueError, match="parent"):
        nested_list([1, -1], ["a", "b"])
