"""Mask tree job on a real Ray cluster, and its statistics on known rows."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ureca.corpus.read import photos_directory, read_sa1b
from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.sources.parse import write_manifest
from ureca.corpus.table import iter_images, write_regions
from ureca.errors import ConfigError, InputError
from ureca.labeling.mask_trees import (
    PLOT_FILE,
    MaskTreesConfig,
    MaskTreesSummary,
    _count_by_doubling_ranges,
    _Statistics,
    build_mask_trees,
    tree_settings,
)
from ureca.pipeline.parts import Parts
from ureca.regions.rle import encode_mask
from ureca.regions.tree import TreeConfig, build_mask_tree


@pytest.fixture(scope="module")
def built(ray_cluster: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MaskTreesSummary, Path]:
    assert ray_cluster
    directory = tmp_path_factory.mktemp("trees")
    config = MaskTreesConfig(sources=(str(corpus), str(photos_directory())), images_per_block=4, actors=2)
    return build_mask_trees(config, directory), directory


@pytest.mark.slow
def test_build_mask_trees_every_image_has_tree_or_reason(built, corpus, bad_images):
    summary, _ = built
    rows = {row.image_id: row for row in iter_images(summary.table)}
    assert {image_id: row.error.kind for image_id, row in rows.items() if row.error} == bad_images
    assert summary.quarantined == dict(Counter(bad_images.values()))
    assert summary.images == len(rows) == 12 + 5 + 6
    for image_id, row in rows.items():
        if row.error:
            continue
        folder = corpus if image_id.startswith("scene") else photos_directory()
        loaded = read_sa1b(folder / f"{image_id}.jpg", folder / f"{image_id}.json")
        tree = build_mask_tree(loaded.masks, loaded.size, TreeConfig())
        assert row.status == "unlabeled"
        assert row.regions == tuple(RegionRow.of(region) for region in tree.regions)
        assert sum(row.notes.values()) == len(loaded.masks) - len(tree.regions) + sum(loaded.notes.values())
    regions = [region for row in rows.values() for region in row.regions]
    assert summary.regions == len(regions) == summary.masks - summary.merged - sum(summary.dropped.values())
    assert summary.merged > 0
    assert summary.levels == dict(sorted(Counter(region.depth for region in regions).items()))


@pytest.mark.slow
def test_build_mask_trees_second_start_builds_nothing(built, corpus, capsys):
    summary, directory = built
    with Image.open(directory / PLOT_FILE) as picture:
        assert picture.format == "PNG"
    before = Path(summary.table).stat().st_mtime_ns
    config = MaskTreesConfig(sources=(str(corpus), str(photos_directory())))
    again = build_mask_trees(config, directory)
    assert replace(again, seconds=summary.seconds) == summary
    assert Path(summary.table).stat().st_mtime_ns == before
    assert f"{summary.table} exists already" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"images\.tree"):
        build_mask_trees(replace(config, tree="paper"), directory)


def test_build_mask_trees_no_tree_at_all_raises(corpus, tmp_path):
    config = MaskTreesConfig(sources=(str(corpus / "bad"),))
    parts = Parts(str(tmp_path / "mask_trees.parquet"))
    write_manifest(config.sources, parts.manifest)
    error = InputError("a.json: not in SA-1B's format")
    write_regions(parts.table, [ImageRow.quarantined("a", "a.jpg", "read", error)])
    parts.mark_finished(tree_settings(config))
    with pytest.raises(InputError, match="1.*a.json:.*SA-1B's"):
        build_mask_trees(config, tmp_path)


def row_of_boxes(image_id: str, parents: list[int], **fields: object) -> ImageRow:
    """Return an image of 16x64 pixels with regions of 100, 50, 25 … % of its area."""
    regions = []
    for index, parent in enumerate(parents):
        mask = np.zeros((16, 64), dtype=bool)
        mask[:, : 64 >> index] = True
        depth = 0 if parent < 0 else regions[parent].depth + 1
        regions.append(
            RegionRow(
                region_id=str(index),
                parent=parent,
                depth=depth,
                segmentation=encode_mask(mask),
                area=int(mask.sum()),
                bbox=(0, 0, 64 >> index, 16),
            )
        )
    return ImageRow(image_id=image_id, height=16, width=64, status="unlabeled", regions=tuple(regions), **fields)


def test_statistics_known_trees():
    statistics = _Statistics()
    statistics.add(row_of_boxes("a", [-1, 0, 0, 1], notes={"merged": 2, "too_small": 3, "duplicated_ids": 1}))
    statistics.add(row_of_boxes("b", [-1]))
    statistics.add(row_of_boxes("c", [], notes={"too_few_levels": 4}))
    statistics.add(ImageRow.quarantined("d", None, "read", InputError("d.jpg: no such file")))
    summary = statistics.summary(seconds=1.0, table="t.parquet", digest="0")
    assert (summary.masks, summary.regions, summary.merged) == (5 + 2 + 3 + 4, 5, 2)
    assert summary.dropped == {"too_small": 3, "too_few_levels": 4}
    assert summary.repaired == {"duplicated_ids": 1}
    assert summary.quarantined == {"InputError": 1}
    assert summary.levels == {0: 2, 1: 2, 2: 1}
    assert vars(summary.levels_per_image) == {"mean": 1.333333, "p5": 0, "median": 1, "p95": 3, "max": 3}
    assert vars(summary.children) == {"mean": 1.5, "p5": 1, "median": 1, "p95": 2, "max": 2}
    assert summary.area_share.max == 1
    assert summary.area_share.median == pytest.approx(0.5, rel=0.06)
    assert statistics.first_error == "d.jpg: no such file"
    with Image.open(io.BytesIO(statistics.plot())) as picture:
        assert picture.format == "PNG"


def test_statistics_no_rows_are_zero():
    summary = _Statistics().summary(seconds=1.0, table="t.parquet", digest="0")
    assert vars(summary.area_share) == {"mean": 0, "p5": 0, "median": 0, "p95": 0, "max": 0}


def test_count_by_doubling_ranges():
    assert _count_by_doubling_ranges(Counter({0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 8: 7, 9: 8})) == {
        "0": 1,
        "1": 2,
        "2": 3,
        "3 to 4": 9,
        "5 to 8": 13,
        "9 to 16": 8,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ()}, "sources"),
        ({"tree": "papre"}, "'papre'"),
        ({"images_per_block": 0}, "images_per_block=0:.*1"),
        ({"table": "trees"}, "table=trees"),
    ],
)
def test_mask_trees_config_invalid_option_raises(options, message):
    with pytest.raises(ConfigError, match=message):
        MaskTreesConfig(**{"sources": ("a",), **options})
