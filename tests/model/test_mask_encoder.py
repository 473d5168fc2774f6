"""The mask encoders: shapes, the paper's parameter counts, and what `tokens` puts right."""

import numpy as np
import pytest
import torch

from ureca.errors import ConfigError
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig, _bounding_boxes, _cut_out, tile_boxes
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
    found = sum(p.numel() for layer in (model.body.conv1, model.body.conv2) for p in layer.parameters())
    assert found == convolutions
    assert sum(p.numel() for p in model.body.projection.parameters()) == 12544 * 896 + 896


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


def test_a_token_points_at_a_cell_of_its_region_and_the_tokens_spread_over_it() -> None:
    model = encoder(tokens_per_tile=8)
    mask = np.zeros((256, 256), dtype=bool)
    mask[64:128, 32:224] = True
    mask[80:112, 96:160] = False  # its middle is a hole
    picked = model.body._pick(torch.from_numpy(mask_tiles(encode_mask(mask), tile_px=256, max_tiles=1)))[0]
    inside = torch.from_numpy(mask).view(32, 8, 32, 8).float().mean((1, 3)).flatten() > 0
    assert (picked * inside).sum(-1).min() > 0.99
    places = picked.argmax(-1)
    assert len(set(places.tolist())) >= 5
    columns = places % 32
    assert columns.min() <= 5
    assert columns.max() >= 26


def test_codes_start_as_the_bases_location_tokens_at_unit_scale() -> None:
    model = encoder()
    words = torch.randn(32 * 32, 64) * 0.03
    model.use_location_embeddings(words)
    assert float(model.body.codes.detach().square().mean()) == pytest.approx(1)
    assert torch.nn.functional.cosine_similarity(model.body.codes.detach(), words).min() > 0.999


def test_the_outline_of_a_tiny_region_is_seen_as_sharp_as_that_of_a_large_one() -> None:
    y, x = np.mgrid[:256, :256]
    looks = []
    for cy, cx, radius in ((40, 40, 8), (128, 128, 100)):
        disc = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        box = (abs(y - cy) <= radius) & (abs(x - cx) <= radius)
        tiles = [torch.from_numpy(mask_tiles(encode_mask(m), tile_px=256, max_tiles=1)) for m in (disc, box)]
        looks.append([_cut_out(t, _bounding_boxes(t)) for t in tiles])
    (small_disc, small_box), (large_disc, large_box) = looks
    assert float((small_disc - large_disc).abs().mean()) < 0.12
    assert float((small_box - large_box).abs().mean()) < 0.08
    assert float((small_disc - small_box).abs().mean()) > 0.15


def test_an_empty_tile_gives_finite_tokens_and_gradients() -> None:
    model = encoder()
    out = model(torch.zeros(1, 1, 1, 256, 256), tile_boxes(1, 1))
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


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
        ({"tile_px": 100}, "multiple of 32"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        encoder(**settings)
