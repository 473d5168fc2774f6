"""Intermediate files of a job, and the table assembled from them."""

import random
from pathlib import Path

import pytest

from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow, scratch
from ureca.corpus.table import iter_images, write_regions
from ureca.errors import ConfigError
from ureca.pipeline import parts as parts_module
from ureca.pipeline.parts import Parts


def row(image_id: str) -> ImageRow:
    return ImageRow(image_id=image_id, image_path=f"/{image_id}.jpg", height=2, width=3, status="unlabeled")


def ids(count: int) -> list[str]:
    return [f"{number:05d}" for number in range(count)]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(str(tmp_path / "regions.parquet"))


def fill(parts: Parts, wanted: list[str], blocks: list[list[str]]) -> None:
    """Write a manifest of the wanted images, and a file of rows per block."""
    import pyarrow.parquet as pq

    Path(parts.folder).mkdir()
    with scratch() as rows:
        for image_id in wanted:
            rows.add(ManifestRow(image_id=image_id, image_path=f"/{image_id}.jpg"))
        with pq.ParquetWriter(parts.manifest, (tables := list(rows.tables()))[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
    for number, block in enumerate(blocks):
        write_regions(f"{parts.rows}/{number}.parquet", map(row, block))


def labeled(parts: Parts) -> list[str]:
    parts.write_table()
    return [found.image_id for found in iter_images(parts.table)]


@pytest.mark.parametrize("spread", [1, 7, 1000])
def test_write_table_shuffled_blocks_gives_sorted_rows(parts, spread):
    """`spread`: maximum distance in the manifest between rows of a block."""
    wanted = ids(200)
    chance = random.Random(0)
    shuffled = sorted(wanted, key=lambda image_id: int(image_id) + chance.uniform(0, spread))
    blocks = [shuffled[start : start + 4] for start in range(0, 200, 4)]
    chance.shuffle(blocks)
    fill(parts, wanted, blocks)
    assert labeled(parts) == wanted
    assert parts.num_rows() == 200


def test_write_table_consecutive_blocks_reads_each_file_once(parts, monkeypatch):
    wanted = ids(400)
    fill(parts, wanted, [wanted[start : start + 4] for start in range(0, 400, 4)])
    read = []
    monkeypatch.setattr(parts_module, "_read", lambda path, columns=None, real=parts_module._read: (
        read.append((path, columns is None)), real(path, columns))[1])  # fmt: skip
    assert labeled(parts) == wanted
    assert sum(all_columns for _, all_columns in read) == 100


def test_write_table_skips_images_removed_from_sources(parts):
    fill(parts, ["00001", "00003"], [["00000", "00001"], ["00002", "00003", "00004"]])
    assert labeled(parts) == ["00001", "00003"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([["00000"], ["00002"]], "00001"),
        ([["00000", "00001"]], "00002"),
        ([["00000", "00001", "00002"], ["00001"]], "00001"),
    ],
)
def test_write_table_missing_or_duplicate_row_raises(parts, blocks, message):
    fill(parts, ids(3), blocks)
    with pytest.raises(AssertionError, match=message):
        parts.write_table()
    assert not Path(parts.table).exists()


SETTINGS = {"sources": ["a"], "labeling": {"verify": True, "tree": {"containment": 0.8}}, "model": None}


def test_check_settings_changed_setting_is_named(parts):
    parts.check_settings(SETTINGS, overwrite=False)
    write_regions(f"{parts.rows}/0.parquet", [row("a")])
    changed = {**SETTINGS, "labeling": {"verify": True, "tree": {"containment": 0.9}}, "model": "m"}
    with pytest.raises(ConfigError, match="labeling.tree.containment"):
        parts.check_settings(changed, overwrite=False)
    assert parts.num_rows() == 1
    parts.check_settings(SETTINGS, overwrite=False)
    assert parts.num_rows() == 1


def test_check_settings_overwrite_deletes_earlier_rows(parts, capsys):
    parts.check_settings(SETTINGS, overwrite=True)
    write_regions(f"{parts.rows}/0.parquet", [row("a")])
    parts.check_settings(SETTINGS, overwrite=True)
    assert parts.num_rows() == 1, "same settings: nothing to delete"
    parts.check_settings({**SETTINGS, "model": "m"}, overwrite=True)
    assert parts.num_rows() == 0
    assert "(model)" in capsys.readouterr().err


def test_check_settings_sources_can_only_be_added(parts):
    parts.check_settings(SETTINGS, overwrite=False)
    parts.check_settings({**SETTINGS, "sources": ["a", "b"]}, overwrite=False)
    with pytest.raises(ConfigError, match="sources"):
        parts.check_settings({**SETTINGS, "sources": ["b"]}, overwrite=False)


def test_is_finished_until_images_or_settings_change(parts):
    fill(parts, ids(2), [ids(2)])
    parts.check_settings(SETTINGS, overwrite=False)
    assert not parts.is_finished(SETTINGS)
    parts.write_table()
    parts.mark_finished(SETTINGS)
    assert parts.is_finished(SETTINGS)
    assert not parts.is_finished({**SETTINGS, "model": "m"})
    Path(parts.manifest).write_bytes(Path(parts.manifest).read_bytes() + b"x")
    assert not parts.is_finished(SETTINGS)
