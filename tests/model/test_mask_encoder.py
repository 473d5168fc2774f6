"""The mask encoders: shapes, the paper's parameter counts, and what `tokens` puts right."""

import numpy as np
import pytest
import torch

from ureca.errors import ConfigError
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig, tile_boxes
from ureca.model.packing import kept_tiles
from ureca.regions.rle import encode_mask
from ureca.regions.tiles import mask_tiles


def encoder(**settings: object) -> MaskEncoder:
    torch.manual_seed(0)
    return MaskEncoder(MaskEncoderConfig(**{"tile_px": 256, "hidden_size": 64, **settings}))  # type: ignore[arg-type]


def square(y: int, x: int, side: int, size: tuple[int, int] = (256, 256)) -> torch.Tensor:
    mask = np.zeros(size, dtype=bool)
    mask[y : y + side, x : x + side] = True
    return torch.from_numpy(mask_tiles(encode_mask(mask), tile_px=256, max_tiles=6))


@pytest.mark.parametrize("kind", ["tokens", "channels"])
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_n_tokens_for_every_tile_of_every_region(kind: str, projection: str) -> None:
    tiles = square(10, 10, 50, (300, 600))
    model = encoder(kind=kind, projection=projection, tokens_per_tile=4)
    assert model(torch.stack([tiles, tiles]), tile_boxes(2, 1)).shape == (2, len(tiles), 4, 64)


@pytest.mark.parametrize(("n", "convolutions"), [(4, 188), (8, 664), (16, 2480), (32, 9568)])
def test_channels_with_a_linear_projection_has_the_papers_parameters(n: int, convolutions: int) -> None:
    model = encoder(kind="channels", projection="linear", tokens_per_tile=n, tile_px=448, hidden_size=896)
    found = sum(p.numel() for layer in (model.conv1, model.conv2) for p in layer.parameters())
    assert found == convolutions
    assert sum(p.numel() for p in model.projection.parameters()) == 12544 * 896 + 896


def test_tokens_start_at_the_norm_of_the_text_embeddings() -> None:
    model = encoder(embedding_norm=0.07)
    tokens = model(square(30, 40, 90)[None], tile_boxes(1, 1))
    assert float(tokens.detach().square().mean().sqrt()) == pytest.approx(0.07, rel=0.01)


def test_tokens_tell_place_size_and_tile_apart() -> None:
    model = encoder()
    one = tile_boxes(1, 1)
    here, there, bigger = (model(square(*at)[None], one) for at in ((20, 20, 30), (200, 20, 30), (20, 20, 60)))
    assert not torch.allclose(here, there, atol=1e-3)
    assert not torch.allclose(here, bigger, atol=1e-3)
    moved = torch.tensor([[0.5, 0.0, 1.0, 1.0]])
    assert not torch.allclose(here, model(square(20, 20, 30)[None], moved), atol=1e-3)


def test_a_tiny_region_still_changes_the_tokens() -> None:
    tiles = square(1500, 2000, 10, (3000, 4000))
    model = encoder()
    boxes = tile_boxes(3, 2)
    empty = model(torch.zeros_like(tiles)[None], boxes)
    assert float((model(tiles[None], boxes) - empty).abs().max()) > 1e-2


def test_tiles_a_region_does_not_touch_are_dropped_but_never_the_thumbnail() -> None:
    tiles = square(10, 10, 50, (300, 600))
    assert kept_tiles(tiles, drop_empty=True).tolist() == [True, False, True]
    assert kept_tiles(tiles, drop_empty=False).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kind": "conv"}, "use 'tokens' or 'channels'"),
        ({"projection": "none"}, "use 'linear' or 'mlp'"),
        ({"tokens_per_tile": 0}, "must be at least 1"),
        ({"tile_px": 100}, "multiple of 64"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        encoder(**settings)
