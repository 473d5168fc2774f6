"""A small region table with everything in it that a gallery has to show, and words that break a careless page."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from ureca.corpus.schema import Distractor, ImageRow, Provenance, RegionRow, RowError
from ureca.corpus.table import write_regions
from ureca.regions.rle import encode_mask, rle_area, rle_bbox

HOSTILE = "<script>window.broken = 1</script> & \"quoted\" </script> <!-- 'single'"
NUM_PLAIN = 30
HEIGHT, WIDTH = 90, 120


def boxes() -> list[tuple[int, tuple[int, int, int, int]]]:
    """(parent, (top, bottom, left, right)) of a whole, two parts that look alike, and a part of the first of them."""
    return [(-1, (5, 85, 5, 115)), (0, (15, 75, 15, 55)), (0, (15, 75, 65, 105)), (1, (30, 50, 25, 45))]


def pixels(seed: int) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    colors = np.random.default_rng(seed).integers(0, 255, (4, 3))
    for (_, (top, bottom, left, right)), color in zip(boxes(), colors, strict=True):
        image[top:bottom, left:right] = color
    return image


def regions() -> tuple[RegionRow, ...]:
    found: list[RegionRow] = []
    for index, (parent, (top, bottom, left, right)) in enumerate(boxes()):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top:bottom, left:right] = True
        rle = encode_mask(mask)
        found.append(
            RegionRow(
                region_id=f"r{index}",
                parent=parent,
                depth=found[parent].depth + 1 if parent >= 0 else 0,
                segmentation=rle,
                area=rle_area(rle),
                bbox=rle_bbox(rle),
                short_caption=f"short words {index}",
                long_caption=f"long words {index}; it has a part",
                caption=f"unique words {index}",
            )
        )
    found[1] = dataclasses.replace(
        found[1],
        merged_ids=("r1b",),
        distractors=(
            Distractor(index=2, similarity=0.97, told_apart_by="left, not right"),
            Distractor(index=3, similarity=0.91),
        ),
        uniqueness=0.5,
        flags=("not_unique",),
        attributes={"color": "teal"},
    )
    return tuple(found)


def rows(folder: Path) -> list[ImageRow]:
    """Plain images, one with hostile words, one whose file is gone, and two that were quarantined."""

    def labeled(image_id: str, **changes) -> ImageRow:
        path = folder / f"{image_id}.png"
        Image.fromarray(pixels(len(image_id) + sum(map(ord, image_id)))).save(path)
        plain = tuple(dataclasses.replace(each, flags=(), distractors=()) for each in regions())
        row = ImageRow(
            image_id=image_id,
            image_path=str(path),
            height=HEIGHT,
            width=WIDTH,
            status="labeled",
            regions=plain,
            provenance=Provenance(describer="chat", model="a-model", prompt_tokens=120, seconds=1.5),
        )
        return dataclasses.replace(row, **changes)

    hostile = tuple(dataclasses.replace(each, caption=HOSTILE, flags=(HOSTILE,)) for each in regions())
    gone = labeled("gone")
    Path(gone.image_path).unlink()
    (folder / "cut.png").write_bytes(b"no image")
    readable = labeled("without_masks")
    return [
        *[labeled(f"plain_{number:02}") for number in range(NUM_PLAIN)],
        labeled("flagged", regions=regions()),
        labeled("hostile", regions=hostile),
        gone,
        ImageRow(
            image_id="cut",
            image_path=str(folder / "cut.png"),
            status="quarantined",
            error=RowError(step="read", kind="ImageError", message=f"cut.png: not an image; {HOSTILE}"),
        ),
        ImageRow(
            image_id="without_masks",
            image_path=readable.image_path,
            status="quarantined",
            error=RowError(step="read", kind="InputError", message="no masks next to it"),
        ),
    ]


def write_sample(folder: Path) -> Path:
    """The table in a separate folder, with its images."""
    table = folder / "regions.parquet"
    write_regions(table, rows(folder))
    return table
