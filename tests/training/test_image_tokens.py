from pathlib import Path

import pytest
import torch

from ureca.corpus import ImageRow, iter_images
from ureca.corpus.table import load_image
from ureca.model import Captioner
from ureca.training import image_tokens
from ureca.training.image_tokens import ImageTokens


@pytest.fixture(scope="module")
def captioner(tiny_base: Path) -> Captioner:
    return Captioner.from_base(str(tiny_base), tile_limit=1)


@pytest.fixture(scope="module")
def rows(region_table: Path) -> list[ImageRow]:
    return [row for row in iter_images(region_table) if row.status == "labeled"]


def test_tokens_are_those_of_the_vision_tower(captioner: Captioner, rows: list[ImageRow]) -> None:
    tokens = ImageTokens(captioner, budget_bytes=2**30)(rows[0])
    pixels = captioner.processor.image_inputs(load_image(rows[0]))
    assert torch.equal(tokens, captioner.image_features(pixels))


def test_an_image_is_read_once(captioner: Captioner, rows: list[ImageRow], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ImageTokens(captioner, budget_bytes=2**30)
    first = [tokens(row) for row in rows]
    monkeypatch.delattr(image_tokens, "load_image")  # whoever reads now fails
    assert all(torch.equal(tokens(row), kept) for row, kept in zip(rows, first, strict=True))


def test_what_has_no_room_is_computed_again(captioner: Captioner, rows: list[ImageRow]) -> None:
    size = 256 * 64 * 4  # tokens, width, bytes of a float32
    tokens = ImageTokens(captioner, budget_bytes=2 * size + 1)
    first = [tokens(row) for row in rows[:4]]
    assert len(tokens) == 2
    assert all(torch.equal(tokens(row), kept) for row, kept in zip(rows, first, strict=False))
    assert len(tokens) == 2


def test_under_autocast_tokens_take_half_the_room(captioner: Captioner, rows: list[ImageRow]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert ImageTokens(captioner, budget_bytes=2**30)(rows[0]).dtype == torch.bfloat16
