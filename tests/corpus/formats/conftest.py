"""A region table of two photos, every field of it filled somewhere, and an image that was quarantined."""

import pytest

from ureca.corpus.read import photos_directory, read_sa1b
from ureca.corpus.schema import Distractor, ImageRow, Provenance, RegionRow
from ureca.corpus.table import write_regions
from ureca.errors import ImageError
from ureca.regions.tree import build_mask_tree


def labeled_row(name: str) -> ImageRow:
    photo = photos_directory() / f"{name}.jpg"
    loaded = read_sa1b(photo, photo.with_suffix(".json"))
    tree = build_mask_tree(loaded.masks, loaded.size)
    regions = tuple(
        RegionRow(
            region_id=region.region_id,
            parent=region.parent,
            depth=region.depth,
            segmentation=region.segmentation,
            area=region.area,
            bbox=region.bbox,
            merged_ids=region.merged_ids,
            short_caption=f"part {index}",
            long_caption=f"part {index}, „long“\nin two lines",
            caption=f"the {index}th part of the {name}",
            distractors=() if index < 2 else (Distractor(index=1, similarity=0.75, told_apart_by="its place"),),
            uniqueness=0.5 if index % 2 else None,
            flags=("not_unique",) if index % 7 == 0 else (),
            attributes={"color": "red", "size": "tiny"} if index % 5 == 0 else None,
        )
        for index, region in enumerate(tree.regions)
    )
    return ImageRow(
        image_id=f"photos/{name}",
        image_path=str(photo),
        height=loaded.size[0],
        width=loaded.size[1],
        status="labeled",
        regions=regions,
        provenance=Provenance(describer="test", prompt_tokens=7, seconds=1.5, requests={"short": 3}),
        notes={"too_small": 2},
    )


@pytest.fixture(scope="session")
def rows() -> list[ImageRow]:
    return [labeled_row("coffee"), labeled_row("flower")]


@pytest.fixture(scope="session")
def table(rows: list[ImageRow], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("table") / "regions.parquet"
    quarantined = ImageRow.quarantined("photos/gone", "gone.jpg", "read", ImageError("gone.jpg: no such file"))
    write_regions(path, [*rows, quarantined])
    return str(path)
