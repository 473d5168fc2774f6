"""A tiny or thin region of a 4K photo (3840 x 2160) still reaches the mask tokens, and so does where it lies."""

import numpy as np
import pytest
import torch

from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig, MaskTiles, tile_boxes
from ureca.regions.rle import box_to_rle, decode_rle
from ureca.regions.tiles import mask_tiles, tile_grid

SIZE = (2160, 3840)
REGIONS = {
    # x, y, width, height, and how far to the right the same region is put: not further than a tile's cell of 14 px
    "10 x 10 px": (1500, 1000, 10, 10, 10),
    "10 x 10 px, moved by half": (1500, 1000, 10, 10, 5),
    "line 2 px wide": (1500, 700, 2, 400, 10),
    "line 2 px high": (300, 1411, 900, 2, 10),
    "one pixel": (1500, 1000, 1, 1, 10),
}
BF16_ROUNDING = 0.0018
"""Resolution of a row in bfloat16, relative to its size: smaller differences are invisible to the language model."""


@pytest.fixture(scope="module")
def encoders() -> dict[str, MaskEncoder]:
    found = {}
    for kind in ("tokens", "channels"):
        torch.manual_seed(0)
        config = MaskEncoderConfig(kind=kind, hidden_size=256, embedding_norm=0.02)  # type: ignore[arg-type]
        found[kind] = MaskEncoder(config).requires_grad_(False)
    return found


def tiles_of(box: tuple[int, int, int, int], max_tiles: int) -> MaskTiles:
    x, y, width, height = box
    rle = box_to_rle((x, y, x + width, y + height), SIZE)
    values, places = mask_tiles(rle, tile_px=448, max_tiles=max_tiles)
    return MaskTiles(torch.from_numpy(values), torch.from_numpy(places), tile_grid(SIZE, 448, max_tiles))


def body(encoder: MaskEncoder, mask: MaskTiles) -> torch.Tensor:
    """`(K, N, D)` of the touched tiles."""
    return encoder.body(mask.values, tile_boxes(*mask.grid)[mask.places])


def size_of(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.square().mean(-1).sqrt()


@pytest.mark.parametrize("max_tiles", [6, 12])
@pytest.mark.parametrize("name", REGIONS)
def test_mask_tiles_keep_the_area(name: str, max_tiles: int) -> None:
    *box, _ = REGIONS[name]
    mask = tiles_of(tuple(box), max_tiles)  # type: ignore[arg-type]
    columns, rows = mask.grid
    area = box[2] * box[3] / (SIZE[0] * SIZE[1])
    grid, thumbnail = mask.values[:-1].sum(), mask.values[-1].sum()
    assert float(grid) == pytest.approx(area * 448**2 * columns * rows, rel=1e-4)
    assert float(thumbnail) == pytest.approx(area * 448**2, rel=1e-4)


@pytest.mark.parametrize("max_tiles", [6, 12])
@pytest.mark.parametrize("name", REGIONS)
def test_tokens_differ_from_no_region_and_from_the_same_region_a_little_further(
    encoders: dict[str, MaskEncoder], name: str, max_tiles: int
) -> None:
    x, y, width, height, further = REGIONS[name]
    here, there = (tiles_of((left, y, width, height), max_tiles) for left in (x, x + further))
    assert here.places.tolist() == there.places.tolist()
    for kind, encoder in encoders.items():
        tokens, moved = body(encoder, here), body(encoder, there)
        empty = encoder.body(torch.zeros(1, 1, 448, 448), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        by_place, by_presence = size_of(tokens - moved), size_of(tokens - empty)
        if kind == "tokens":  # each of them, in some tile, against its own size
            assert (by_place / size_of(tokens)).amax(0).min() > 4 * BF16_ROUNDING
            assert (by_presence / size_of(tokens)).min() > 0.5
        else:  # one of them at least: about half of the channels are silent at first
            assert (by_place / size_of(tokens).clamp_min(1e-3)).max() > 0.05
            assert by_presence.max() > 0.005


def test_channels_hardly_hears_a_pixel_beside_what_it_hears_of_a_large_region(encoders: dict[str, MaskEncoder]) -> None:
    """The weakness that kind `tokens` fixes: there both have the norm of a text embedding."""
    pixel, large = tiles_of((1500, 1000, 1, 1), 6), tiles_of((400, 300, 1400, 1500), 6)
    channels = encoders["channels"]
    assert size_of(body(channels, pixel)).max() < size_of(body(channels, large)).max() / 500
    for mask in (pixel, large):
        tokens = size_of(body(encoders["tokens"], mask))
        torch.testing.assert_close(tokens, torch.full_like(tokens, 0.02), rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", ["tokens", "channels"])
def test_a_line_that_nearest_neighbor_sampling_loses_is_noticed_to_be_lost(
    encoders: dict[str, MaskEncoder], kind: str
) -> None:
    """The check above can fail: sampled as the authors sample, the line is no different from no region."""
    dense = decode_rle(box_to_rle((1501, 700, 1503, 1100), SIZE))
    sampled = dense[(np.arange(448) * 2160 // 448)[:, None], np.arange(896) * 3840 // 896]
    assert not sampled.any()
    line = tiles_of((1501, 700, 2, 400), 6)
    assert line.places.tolist() == [0, 2]
    whole = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
    lost = encoders[kind].body(torch.from_numpy(sampled[:, :448].astype(np.float32))[None, None], whole)
    empty = encoders[kind].body(torch.zeros(1, 1, 448, 448), whole)
    kept = encoders[kind].body(line.values[:1], whole)
    assert size_of(lost - empty).max() == 0
    assert size_of(kept - empty).max() > 0.005
