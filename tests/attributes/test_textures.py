"""Names of textures."""

import numpy as np
import pytest

from ureca.attributes.textures import name_texture

RED, WHITE = np.array([200, 40, 40]), np.array([240, 240, 240])
Y, X = np.mgrid[:64, :64]
RNG = np.random.default_rng(0)

PATTERNS = {
    "upright stripes": (X % 10 < 4, "striped"),
    "slanting stripes": ((X + Y) % 12 < 5, "striped"),
    "crossing bands": ((X % 11 < 3) | (Y % 11 < 3), "checkered"),
    "chessboard": ((X // 6 + Y // 6) % 2 == 0, "checkered"),
    "dots": ((X % 10 - 5) ** 2 + (Y % 10 - 5) ** 2 <= 9, "dotted"),
    "grains": (RNG.random((32, 32)).repeat(2, 0).repeat(2, 1) < 0.25, "speckled"),
    "one color": (X < 0, "smooth"),
    "two halves": (X < 32, "smooth"),
}


def painted(pattern: np.ndarray) -> np.ndarray:
    clean = np.where(pattern[..., None], WHITE, RED)
    return np.clip(clean + RNG.normal(0, 3, pattern.shape)[..., None], 0, 255).astype(np.uint8)


@pytest.mark.parametrize("case", PATTERNS)
def test_name_texture_of_patterns(case):
    pattern, name = PATTERNS[case]
    assert name_texture(painted(pattern), np.ones(pattern.shape, bool)) == name


@pytest.mark.parametrize("case", ["upright stripes", "crossing bands", "dots", "grains"])
def test_name_texture_inside_a_round_mask(case):
    pattern, name = PATTERNS[case]
    mask = (X - 32) ** 2 + (Y - 32) ** 2 < 26**2
    image = np.where(mask[..., None], painted(pattern), 0).astype(np.uint8)
    assert name_texture(image, mask) == name


def test_name_texture_of_a_light_gradient_is_smooth():
    image = (RED + (X + Y)[..., None] * 0.3).astype(np.uint8)
    assert name_texture(image, np.ones(X.shape, bool)) == "smooth"


def test_name_texture_of_few_pixels_is_smooth():
    image = painted(PATTERNS["grains"][0])[:8, :8]
    assert name_texture(image, np.ones((8, 8), bool)) == "smooth"


def test_name_texture_of_faint_grain_is_none():
    image = np.clip(RED + RNG.normal(0, 14, X.shape)[..., None], 0, 255).astype(np.uint8)
    assert name_texture(image, np.ones(X.shape, bool)) is None
