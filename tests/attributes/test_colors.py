"""Names of colors."""

import numpy as np
import pytest

from ureca.attributes.colors import color_features, name_colors, shade_counts, to_oklab
from ureca.attributes.vocabulary import SHADES


def pixels(*parts: tuple[tuple[int, int, int], int]) -> np.ndarray:
    return np.concatenate([np.tile(np.array(rgb, np.uint8), (count, 1)) for rgb, count in parts])


@pytest.mark.parametrize("name", SHADES)
def test_name_colors_names_each_shade(name):
    assert name_colors(shade_counts(pixels((SHADES[name], 50)))) == (name, None)


@pytest.mark.parametrize("name", SHADES)
def test_name_colors_is_robust_to_noise(name):
    noise = np.random.default_rng(0).normal(0, 5, (500, 3))
    noisy = np.clip(np.array(SHADES[name]) + noise, 0, 255).astype(np.uint8)
    assert name_colors(shade_counts(noisy))[0] == name


@pytest.mark.parametrize(
    ("what", "rgb", "names"),
    [
        ("skin in light", (225, 185, 160), {"light brown", "light pink"}),
        ("leaf in shadow", (60, 75, 35), {"dark green"}),
        ("sky at night", (43, 56, 85), {"dark blue"}),
        ("fur", (152, 110, 75), {"brown", "light brown"}),
        ("orange cloth", (195, 90, 60), {"orange"}),
        ("concrete", (130, 130, 126), {"gray"}),
    ],
)
def test_name_colors_of_muted_photo_colors(what, rgb, names):
    assert name_colors(shade_counts(pixels((rgb, 50))))[0] in names, what


def test_name_colors_second_color_needs_its_share():
    red, white = SHADES["red"], SHADES["white"]
    assert name_colors(shade_counts(pixels((red, 70), (white, 30)))) == ("red", "white")
    assert name_colors(shade_counts(pixels((red, 90), (white, 10)))) == ("red", None)


def test_name_colors_second_color_is_not_a_shade_of_the_first():
    counts = shade_counts(pixels((SHADES["blue"], 60), (SHADES["dark blue"], 40)))
    assert name_colors(counts) == ("blue", None)


def test_to_oklab_equals_published_white_and_red():
    # Björn Ottosson, "A perceptual color space for image processing"; red from its reference code.
    np.testing.assert_allclose(to_oklab(np.array([255, 255, 255])), [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(to_oklab(np.array([255, 0, 0])), [0.628, 0.225, 0.126], atol=1e-3)


def test_color_features_are_closest_for_shades_of_one_color():
    blue, dark_blue, yellow = (
        color_features(shade_counts(pixels((SHADES[name], 9)))) for name in ("blue", "dark blue", "yellow")
    )
    assert blue @ blue == pytest.approx(1)
    assert blue @ dark_blue > blue @ yellow
