"""Drawn scenes that the tests of this folder share."""

import pytest

from ureca.nano.scenes.draw import Scene, draw_scene


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in range(200)]
