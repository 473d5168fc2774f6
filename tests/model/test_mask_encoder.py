"""Both mask encoders: `channels` against the authors' architecture, and what `tokens` puts right of it."""

import numpy as np
import pytest
import torch

from ureca.errors import ConfigError
from ureca.model.mask_encoder import (
    TILES_AT_ONCE,
    MaskEncoder,
    MaskEncoderConfig,
    MaskTiles,
    _bounding_boxes,
    _cut_out,
    rows_of_mask,
    tile_boxes,
)
from ureca.regions.rle import encode_mask
from ureca.regions.tiles import mask_tiles, tile_grid

KINDS = ("tokens", "channels")


def encoder(**settings: object) -> MaskEncoder:
    torch.manual_seed(0)
    return MaskEncoder(MaskEncoderConfig(**{"tile_px": 256, "hidden_size": 64, **settings}))  # type: ignore[arg-type]


def cut(mask: np.ndarray, *, tile_px: int = 256, max_tiles: int = 6) -> MaskTiles:
    values, places = mask_tiles(encode_mask(mask), tile_px=tile_px, max_tiles=max_tiles)
    return MaskTiles(torch.from_numpy(values), torch.from_numpy(places), tile_grid(mask.shape, tile_px, max_tiles))


def square(y: int, x: int, side: int, size: tuple[int, int] = (256, 256)) -> MaskTiles:
    mask = np.zeros(size, dtype=bool)
    mask[y : y + side, x : x + side] = True
    return cut(mask)


def disc(radius: int, size: int = 448) -> torch.Tensor:
    y, x = np.mgrid[:size, :size] - size // 2
    return torch.from_numpy(y**2 + x**2 <= radius**2)[None, None].float()


def middle(model: MaskEncoder, mask: MaskTiles) -> torch.Tensor:
    """A region's mask tokens without their delimiters, `(tiles, N, D)`."""
    (rows,) = model([mask])
    return rows[1:-1].unflatten(0, (-1, model.config.tokens_per_tile)).detach()


def scale(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.float().square().mean(-1).sqrt()


# ---- both


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize(("kind", "tiles"), [("tokens", 2), ("channels", 3)])
def test_rows_are_start_n_tokens_for_each_tile_end(kind: str, tiles: int, projection: str) -> None:
    mask = square(10, 10, 50, (300, 600))
    model = encoder(kind=kind, projection=projection, tokens_per_tile=4)
    first, second = model([mask, mask])
    assert first.shape == (2 + 4 * tiles, 64)
    assert len(first) == rows_of_mask(mask, 4, drop_empty=kind == "tokens")
    torch.testing.assert_close(first[[0, -1]], torch.stack([model.start, model.end]))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_regions_of_many_grids_in_one_batch_are_encoded_as_each_alone(kind: str) -> None:
    sizes = ((256, 256), (300, 600), (600, 300), (500, 780), (256, 2000))
    masks = [square(20 * i, 25 * i, 40 + 10 * i, size) for i, size in enumerate(sizes)] * 8
    assert sum(len(mask.values) for mask in masks) > 2 * TILES_AT_ONCE[0]  # several portions of tiles
    model = encoder(kind=kind, tokens_per_tile=4).double()
    together = model(masks)
    for rows, mask in zip(together, masks, strict=True):
        torch.testing.assert_close(rows, model([mask])[0], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together[1], together[1 + len(sizes)].roll(1, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_no_regions_no_rows(kind: str) -> None:
    assert encoder(kind=kind)([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gives_what_float32_gives_for_thin_and_tiny_shapes_on_13_tiles(kind: str) -> None:
    thin = np.zeros((1500, 2000), dtype=bool)
    thin[700:702, 100:1900] = True
    tiny = np.zeros_like(thin)
    tiny[900:903, 1200:1203] = True
    full = np.ones_like(thin)
    masks = [cut(mask, max_tiles=12) for mask in (thin, tiny, full)]
    assert masks[2].num_tiles == len(masks[2].values) == 13
    exact = encoder(kind=kind, input_scale=1.0)
    rough = encoder(kind=kind, input_scale=1.0).to(torch.bfloat16)
    for mask, rows, rounded in zip(masks, exact(masks), rough(masks), strict=True):
        assert torch.isfinite(rounded).all()
        assert scale(rounded - rows).max() < 0.03 * scale(rows).max(), mask.places
    with torch.autocast("cpu", torch.bfloat16):
        for rows, rounded in zip(exact(masks), rough(masks), strict=True):
            assert scale(rounded - rows).max() < 0.03 * scale(rows).max()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_tile_gives_finite_tokens_and_gradients(kind: str) -> None:
    model = encoder(kind=kind)
    (rows,) = model([MaskTiles(torch.zeros(1, 1, 256, 256), torch.tensor([0]), (1, 1))])
    rows.square().sum().backward()
    assert torch.isfinite(rows).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kind": "conv"}, "'tokens'.*'channels'"),
        ({"projection": "none"}, "'linear'.*'mlp'"),
        ({"tokens_per_tile": 0}, "1"),
        ({"tile_px": 100}, "multiple"),
        ({"waves": 0}, "waves=0:.*1"),
        ({"input_scale": 0.0}, "input_scale=0.0:.*0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        encoder(**settings)


# ---- channels: the authors'


def authors_forward(weights: dict[str, np.ndarray], tiles: np.ndarray) -> np.ndarray:
    """`(T, H, W)` tiles of 0 and 255 -> `(T * N, D)`: the authors' encoder, written out tap by tap."""

    def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """`(C, H, W)` -> `(N, H / 2, W / 2)`: 3x3, stride 2, padding 1."""
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        out = np.repeat(bias, height * width).reshape(len(bias), height, width)
        for row in range(3):
            for column in range(3):
                seen = padded[:, row : row + 2 * height : 2, column : column + 2 * width : 2]
                out = out + np.tensordot(kernel[:, :, row, column], seen, axes=1)
        return out

    tokens = []
    for tile in tiles:
        x = np.maximum(convolve(tile[None], weights["conv1.weight"], weights["conv1.bias"]), 0)
        x = np.maximum(convolve(x, weights["conv2.weight"], weights["conv2.bias"]), 0)
        flat = x.reshape(len(x), -1)
        tokens.append(flat @ weights["projection.weight"].T + weights["projection.bias"])
    return np.concatenate(tokens)


@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_channels_computes_what_the_authors_encoder_does(n: int) -> None:
    mask = np.zeros((128, 192), dtype=bool)  # three by two tiles of 64 px, whole pixels in each
    mask[10:50, 30:90] = True
    mask[100:103, 100:190] = True
    model = encoder(kind="channels", tokens_per_tile=n, tile_px=64).double()
    with torch.no_grad():  # as after training: biases too
        for parameter in model.body.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    weights = {name: value.numpy() for name, value in model.body.state_dict().items()}
    tiles = [255.0 * mask[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64, 128)]
    expected = authors_forward(weights, np.stack(tiles))
    region = cut(mask, tile_px=64)
    assert len(region.values) == 5  # one of the six is empty, and the thumbnail
    found = middle(model, region)[:6].flatten(0, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    other_scale = authors_forward(weights, np.stack(tiles) / 255)
    assert not np.allclose(found, other_scale, rtol=0.1)
    turned = {**weights, "conv2.weight": weights["conv2.weight"].swapaxes(2, 3)}
    assert not np.allclose(found, authors_forward(turned, np.stack(tiles)), rtol=1e-3)


@pytest.mark.parametrize(("n", "convolutions"), [(4, 188), (8, 664), (16, 2480), (32, 9568)])
@pytest.mark.parametrize(("width", "linear"), [(896, 11.24), (2048, 25.69), (3584, 44.96), (4096, 51.38)])
def test_channels_has_the_authors_number_of_parameters(n: int, convolutions: int, width: int, linear: float) -> None:
    with torch.device("meta"):
        model = encoder(kind="channels", tokens_per_tile=n, tile_px=448, hidden_size=width)
    found = sum(p.numel() for layer in (model.body.conv1, model.body.conv2) for p in layer.parameters())
    assert found == convolutions
    projection = sum(p.numel() for p in model.body.projection.parameters())
    assert projection == 12544 * width + width
    assert projection / 1e6 == pytest.approx(linear, abs=0.005)
    assert sum(p.numel() for p in model.parameters()) == convolutions + projection + 2 * width  # and the delimiters


def test_channels_starts_as_the_authors_code_does() -> None:
    model = encoder(kind="channels", tokens_per_tile=32, tile_px=448, hidden_size=896)
    layers = {"conv1": (9, 32), "conv2": (9 * 32, 32), "projection": (12544, 896)}
    for name, (fan_in, fan_out) in layers.items():
        weight = getattr(model.body, name).weight.detach()
        expected = (2 / (fan_in + fan_out)) ** 0.5
        sure = 4 / (2 * weight.numel()) ** 0.5  # four standard errors
        assert float(weight.std()) == pytest.approx(expected, rel=sure), name
        assert abs(float(weight.mean())) < 4 * expected / weight.numel() ** 0.5, name
        assert not getattr(model.body, name).bias.any()
    # fan_out counts channels only: with the kernel's area too it would be another spread, and be noticed
    with_area = (2 / (9 * 32 + 9 * 32)) ** 0.5
    assert float(model.body.conv2.weight.detach().std()) != pytest.approx(with_area, rel=0.1)


def test_channels_tokens_are_as_large_at_the_start_as_the_authors() -> None:
    """About 5 to 60 for a disc of radius 100 at D = 4096: a draw's median token, 10th to 90th percentile of draws."""
    model = encoder(kind="channels", tile_px=448, hidden_size=64)
    # A token's scale follows from its channel's map; 64 of the 4,096 rows of the projection are enough to see it.
    torch.nn.init.normal_(model.body.projection.weight, std=(2 / (12544 + 4096)) ** 0.5)
    scales = []
    for _ in range(100):
        for conv, fans in ((model.body.conv1, 9 + 8), (model.body.conv2, 72 + 8)):
            torch.nn.init.normal_(conv.weight, std=(2 / fans) ** 0.5)
        with torch.no_grad():
            scales.append(scale(model.body(disc(100), tile_boxes(1, 1))).median())
    low, high = np.percentile(scales, [10, 90])
    assert 3 < low < 7
    assert 40 < high < 80
    ours = encoder(tile_px=448, hidden_size=64, embedding_norm=0.02)
    assert float(scale(ours.body(disc(100), tile_boxes(1, 1))).detach().max()) == pytest.approx(0.02, rel=0.01)


def test_channels_gives_every_empty_tile_the_same_tokens_and_computes_them_once() -> None:
    mask = np.zeros((1500, 2000), dtype=bool)
    mask[10:300, 10:300] = True
    region = cut(mask, max_tiles=12)
    model = encoder(kind="channels").double()
    torch.nn.init.normal_(model.body.conv1.bias)
    torch.nn.init.normal_(model.body.projection.bias)
    seen = []
    model.body.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    tokens = middle(model, region)
    assert len(tokens) == 13
    assert seen == [len(region.values) + 1] == [3]  # one stands for the eleven empty ones
    every = torch.zeros(13, 1, 256, 256)
    every[region.places] = region.values
    torch.testing.assert_close(tokens, model.body(every, tile_boxes(4, 3)), rtol=1e-10, atol=1e-10)
    assert torch.equal(tokens[5], tokens[11])
    assert not torch.allclose(tokens[5], tokens[0])


def test_channels_tokens_do_not_know_their_tile() -> None:
    """The weakness that kind `tokens` fixes: see test_tokens_tell_place_size_and_tile_apart."""
    model = encoder(kind="channels")
    here, there = (middle(model, square(20, x, 30, (256, 512))) for x in (20, 256 + 20))
    torch.testing.assert_close(here[0], there[1])


# ---- tokens: ours


@pytest.mark.parametrize("n", [4, 8, 16, 32])
@pytest.mark.parametrize("mask", ["disc", "line", "pixel", "full"])
def test_tokens_start_at_the_norm_of_the_text_embeddings_whatever_the_region(n: int, mask: str) -> None:
    dense = np.zeros((500, 780), dtype=bool)
    y, x = np.mgrid[:500, :780]
    dense |= {
        "disc": (y - 250) ** 2 + (x - 300) ** 2 < 90**2,
        "line": abs(y - x) < 1,
        "pixel": (y == 444) & (x == 333),
        "full": y >= 0,
    }[mask]
    tokens = middle(encoder(embedding_norm=0.07, tokens_per_tile=n), cut(dense))
    torch.testing.assert_close(scale(tokens), torch.full(tokens.shape[:2], 0.07), rtol=0.01, atol=0)
    if mask == "disc":  # of channels no two are alike
        channels = scale(middle(encoder(kind="channels", tokens_per_tile=n), cut(dense)))
        assert channels.max() > 30 * 0.07
        assert channels.max() > 10 * channels.min()


def test_tokens_tell_place_size_and_tile_apart() -> None:
    model = encoder()
    here, there, bigger = (middle(model, square(*at)) for at in ((20, 20, 30), (200, 20, 30), (20, 20, 60)))
    assert scale(here - there).min() > 0.3 * model.config.embedding_norm
    assert scale(here - bigger).min() > 0.03 * model.config.embedding_norm
    left, right = (middle(model, square(20, x, 30, (256, 512)))[0] for x in (20, 256 + 20))
    assert scale(left - right).min() > 0.03 * model.config.embedding_norm


@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_tokens_has_less_than_a_fifth_of_the_authors_parameters(n: int) -> None:
    with torch.device("meta"):
        ours, theirs = (
            sum(parameter.numel() for parameter in model.parameters())
            for model in (encoder(kind=k, tokens_per_tile=n, tile_px=448, hidden_size=4096) for k in KINDS)
        )
    assert 5 * ours < theirs


@pytest.mark.parametrize("n", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("side", [1, 3, 9, 40, 250])
def test_every_token_points_inside_its_region_however_small_that_is(n: int, side: int) -> None:
    region = square(100, 3, side)
    inside = torch.nn.functional.adaptive_avg_pool2d(region.values, 32).flatten() > 0
    picked = encoder(tokens_per_tile=n).body._pick(region.values)[0]
    assert (picked * inside).sum(-1).min() > 0.999
    if n >= 4 and side <= 3:  # what the check is good for: without the limit some point far away
        loose = encoder(tokens_per_tile=n, only_inside=False).body._pick(region.values)[0]
        assert (loose * inside).sum(-1).min() < 0.01


def test_tokens_spread_over_their_region() -> None:
    model = encoder(tokens_per_tile=8)
    mask = np.zeros((256, 256), dtype=bool)
    mask[64:128, 32:224] = True
    mask[80:112, 96:160] = False  # its middle is a hole
    picked = model.body._pick(cut(mask, max_tiles=1).values)[0]
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
        round_ = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        box = (abs(y - cy) <= radius) & (abs(x - cx) <= radius)
        tiles = [cut(m, max_tiles=1).values for m in (round_, box)]
        looks.append([_cut_out(t, _bounding_boxes(t)) for t in tiles])
    (small_disc, small_box), (large_disc, large_box) = looks
    assert float((small_disc - large_disc).abs().mean()) < 0.12
    assert float((small_box - large_box).abs().mean()) < 0.08
    assert float((small_disc - small_box).abs().mean()) > 0.15


def test_tokens_encodes_and_sends_only_tiles_that_the_region_touches() -> None:
    model = encoder()
    seen = []
    model.body.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    region = square(10, 10, 50, (300, 600))
    assert region.places.tolist() == [0, 2]  # its tile and the thumbnail
    assert len(middle(model, region)) == 2
    assert seen == [2]


def test_a_record_from_before_a_setting_was_there_means_what_it_meant_then() -> None:
    old = MaskEncoderConfig.from_record({"kind": "tokens", "projection": "mlp", "tile_px": 256, "hidden_size": 64})
    assert (old.waves, old.only_inside, old.input_scale, old.projection) == (4, False, 1.0, "mlp")
    new = MaskEncoderConfig(tile_px=256, hidden_size=64)
    assert MaskEncoderConfig.from_record(vars(new)) == new
    assert MaskEncoder(old).body.describe[0].in_features != MaskEncoder(new).body.describe[0].in_features
