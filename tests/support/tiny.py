"""A base of a few thousand weights and a region table of a few images: small enough to train in seconds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.table import write_regions
from ureca.regions.rle import encode_mask, rle_area, rle_bbox

COLORS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "yellow": (240, 220, 40)}


def drawn_row(folder: Path, number: int, num_regions: int) -> ImageRow:
    """An image of colored boxes side by side, its captions as long as the box's number asks."""
    draw = np.random.default_rng(number)
    pixels = np.full((64, 96, 3), 128, np.uint8)
    regions = []
    for index in range(num_regions):
        name = str(draw.choice(list(COLORS)))
        mask = np.zeros(pixels.shape[:2], bool)
        left = index * (96 // num_regions)
        mask[draw.integers(0, 20) : draw.integers(40, 64), left : left + 96 // num_regions - 1] = True
        pixels[mask] = COLORS[name]
        rle = encode_mask(mask)
        regions.append(
            RegionRow(
                region_id=str(index),
                parent=-1,
                depth=0,
                segmentation=rle,
                area=rle_area(rle),
                bbox=rle_bbox(rle),
                short_caption=f"a {name} box",
                long_caption=f"a {name} box, number {index} from the left" + ", long" * index,
                caption=f"the {name} box at {index}",
            )
        )
    path = folder / f"image{number:02d}.png"
    Image.fromarray(pixels).save(path)
    return ImageRow(
        image_id=f"image{number:02d}",
        image_path=str(path),
        height=64,
        width=96,
        status="labeled",
        regions=tuple(regions),
    )


@pytest.fixture(scope="session")
def region_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven labeled images with one to four regions, and a quarantined one."""
    folder = tmp_path_factory.mktemp("table")
    rows = [drawn_row(folder, number, 1 + number % 4) for number in range(7)]
    broken = ImageRow.quarantined("broken", None, "read", ValueError("cut short"))
    write_regions(folder / "regions.parquet", [*rows[::-1], broken])
    return folder / "regions.parquet"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF-native InternVL of 64 wide layers with nano's tokenizer, freshly drawn."""
    from ureca.nano.architecture import nano_config, nano_processor, nano_tokenizer, new_nano, save_nano

    tokenizer = nano_tokenizer(["a red green blue yellow box, number from the left, long"] * 4, num_words=384)
    config = nano_config(tokenizer, width=64, layers=2, vision_width=64, vision_layers=1)
    folder = tmp_path_factory.mktemp("tiny_base")
    save_nano(new_nano(config, seed=0), nano_processor(tokenizer), folder)
    return folder
