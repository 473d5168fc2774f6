from pathlib import Path

import pytest
import torch

from ureca.corpus.table import iter_images, load_image
from ureca.model.captioner import Captioner
from ureca.training.data.image_feature_cache import ImageFeatureCache


@pytest.fixture(scope="module")
def captioner(tiny_base: Path) -> Captioner:
    return Captioner.from_base(str(tiny_base), tile_limit=1)


@pytest.fixture(scope="module")
def pixels(captioner: Captioner, region_table: Path) -> dict[str, torch.Tensor]:
    rows = [row for row in iter_images(region_table) if row.status == "labeled"]
    return {row.image_id: captioner.processor.image_inputs(load_image(row)) for row in rows}


def test_tokens_are_those_of_the_vision_tower(captioner: Captioner, pixels: dict[str, torch.Tensor]) -> None:
    tokens = ImageFeatureCache(captioner, budget_bytes=2**30)
    for image_id, values in pixels.items():
        assert torch.equal(tokens(image_id, values), captioner.image_features(values))


def test_what_is_kept_needs_no_pixels(captioner: Captioner, pixels: dict[str, torch.Tensor]) -> None:
    tokens = ImageFeatureCache(captioner, budget_bytes=2**30)
    first = {image_id: tokens(image_id, values) for image_id, values in pixels.items()}
    assert all(image_id in tokens for image_id in pixels)
    assert all(torch.equal(tokens(image_id, None), kept) for image_id, kept in first.items())


def test_what_has_no_room_is_computed_again(captioner: Captioner, pixels: dict[str, torch.Tensor]) -> None:
    size = 256 * 64 * 4  # tokens, width, bytes of a float32
    tokens = ImageFeatureCache(captioner, budget_bytes=2 * size + 1)
    some = list(pixels.items())[:4]
    first = [tokens(image_id, values) for image_id, values in some]
    assert len(tokens) == 2
    assert [image_id in tokens for image_id, _ in some] == [True, True, False, False]
    assert all(torch.equal(tokens(*each), kept) for each, kept in zip(some, first, strict=True))
    assert len(tokens) == 2


def test_under_autocast_tokens_take_half_the_room(captioner: Captioner, pixels: dict[str, torch.Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert ImageFeatureCache(captioner, budget_bytes=2**30)(*next(iter(pixels.items()))).dtype == torch.bfloat16
