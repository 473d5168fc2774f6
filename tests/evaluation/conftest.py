from collections.abc import Callable

import pytest
from support.labeled_scenes import scene_row

from ureca.corpus.schema import ImageRow


@pytest.fixture(scope="session")
def scenes() -> list[ImageRow]:
    return [scene_row(seed) for seed in range(6)]


@pytest.fixture(scope="session")
def true_answers(scenes: list[ImageRow]) -> dict[str, str]:
    """The label of every region, by its mask."""
    return {region.segmentation["counts"]: region.caption or "" for row in scenes for region in row.regions}


@pytest.fixture(scope="session")
def colorless() -> Callable[[str], str]:
    """A caption with its color made wrong."""
    colors = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "gray", "black")

    def spoil(caption: str) -> str:
        for color in (*colors, "white"):
            if f" {color}," in caption:
                return caption.replace(f" {color},", " blue," if color != "blue" else " red,")
        return caption

    return spoil
