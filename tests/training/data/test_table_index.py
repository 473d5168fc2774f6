"""The pass over a region table before training: what it counts, what it refuses, and reading by place afterwards."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.tiny import drawn_row

from ureca.corpus.row_groups import RowGroups
from ureca.corpus.schema import ImageRow
from ureca.corpus.split import split_heldout
from ureca.corpus.table import iter_images, rows_to_table, write_regions
from ureca.errors import ImageError, InputError, MaskSizeError, UrecaError
from ureca.model.mask_encoder import rows_of_mask
from ureca.model.processor import CaptionerProcessor
from ureca.storage import files as io
from ureca.training.data.table_index import TableIndex, open_index, prepare_index


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> CaptionerProcessor:
    return CaptionerProcessor.from_pretrained(str(tiny_base), tile_limit=6)


@pytest.fixture
def rows(tmp_path: Path) -> list[ImageRow]:
    return [drawn_row(tmp_path, number, 1 + number % 4) for number in range(40)]


def prepared(
    table: str | Path,
    directory: Path,
    processor: CaptionerProcessor,
    *,
    heldout: float = 0.0,
    heldout_seed: int = 0,
    has_begun: bool = False,
) -> TableIndex:
    return prepare_index(
        str(table), directory, processor, heldout=heldout, heldout_seed=heldout_seed, has_begun=has_begun
    )


def changed(row: ImageRow, region: int, **fields: Any) -> ImageRow:
    """The row with other fields of one region; its own checks left out, as another writer might."""
    record = row.to_record()
    record["regions"][region].update(fields)
    return record  # type: ignore[return-value]


def write_records(path: Path, rows: list[Any], **options: Any) -> Path:
    records = [row if isinstance(row, dict) else row.to_record() for row in rows]
    table = rows_to_table([])
    pq.write_table(pa.Table.from_pylist(records, schema=table.schema), path, **options)
    return path


# ---- what it knows, and what it reads


def test_images_are_numbered_in_the_order_of_their_ids_and_read_one_by_one(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    broken = ImageRow.quarantined("a broken one", None, "read", ValueError("cut short"))
    unlabeled = replace(rows[7], status="unlabeled")
    write_regions(tmp_path / "t.parquet", [*rows[:7][::-1], broken, unlabeled, *rows[8:]])
    index = prepared(tmp_path / "t.parquet", tmp_path / "run", processor)
    expected = [row for row in rows if row.image_id != rows[7].image_id]
    read = index.rows()
    assert [read[number] for number in range(len(index))] == expected
    assert index.images["regions"].tolist() == [len(row.regions) for row in expected]
    for number, row in enumerate(expected):
        for place, region in enumerate(row.regions):
            captions = (region.short_caption, region.long_caption, region.caption)
            counted = index.captions[index.first[number] + place].tolist()
            assert counted == [len(processor.caption_ids(caption or "")) for caption in captions]


def test_tiles_of_a_region_s_box_bound_those_that_its_mask_touches(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    write_regions(tmp_path / "t.parquet", rows)
    index = prepared(tmp_path / "t.parquet", tmp_path / "run", processor)
    touched = [
        rows_of_mask(processor.mask_tiles(region.segmentation), 1, drop_empty=True) - 2
        for row in rows
        for region in row.regions
    ]
    assert processor.grid((64, 96)) != (1, 1)
    assert (index.tiles >= touched).all()
    assert index.tiles.tolist() == touched  # the boxes of boxes are exact


def test_heldout_images_are_those_that_evaluation_takes(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    write_regions(tmp_path / "t.parquet", rows)
    heldout = split_heldout([row.image_id for row in rows], 0.3, seed=4).heldout
    index = prepared(tmp_path / "t.parquet", tmp_path / "run", processor, heldout=0.3, heldout_seed=4)
    read = index.rows()
    stats = [read[number].image_id for number in range(len(index))]
    assert heldout
    assert sorted([*stats, *heldout]) == [row.image_id for row in rows]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_tables_of_several_files_with_images_in_them(
    place: str, rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    table = f"{request.getfixturevalue('s3_bucket')}/several" if place == "s3" else str(tmp_path / "several")
    inside = [replace(row, image_bytes=io.read_bytes(row.image_path or ""), image_path=None) for row in rows]
    for number in range(3):
        write_regions(f"{table}/part-{number}.parquet", inside[number::3])
    index = prepared(table, tmp_path / "run", processor)
    read = index.rows()
    assert [read[number] for number in (39, 0, 17, 3)] == [inside[number] for number in (39, 0, 17, 3)]


def test_no_more_row_groups_are_held_than_told(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    write_regions(tmp_path / "t.parquet", rows)
    groups = RowGroups(prepared(tmp_path / "t.parquet", tmp_path / "run", processor).files, groups_kept=2)
    assert [groups.row(0, number // 16, number % 16) for number in range(40)] == rows
    assert len(groups._groups) == 2


# ---- the same table, a changed one


def test_a_run_that_goes_on_reads_no_row_of_the_table_again(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_regions(tmp_path / "t.parquet", rows)
    first = prepared(tmp_path / "t.parquet", tmp_path / "run", processor)
    monkeypatch.delattr(RowGroups, "scan")  # whoever reads now fails
    again = prepared(tmp_path / "t.parquet", tmp_path / "run", processor, has_begun=True)
    for one in (again, open_index(tmp_path / "run")):
        assert one.files == first.files
        assert all((getattr(one, name) == getattr(first, name)).all() for name in ("images", "captions", "tiles"))


def test_a_table_that_changed_under_a_run_is_refused(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    table = tmp_path / "t.parquet"
    write_regions(table, rows)
    index = prepared(table, tmp_path / "run", processor)
    other = replace(rows[5].regions[0], caption="the green box at 0")
    write_regions(table, [*rows[:5], replace(rows[5], regions=(other, *rows[5].regions[1:])), *rows[6:]])
    with pytest.raises(InputError, match=r"t\.parquet:.*\(1"):
        prepared(table, tmp_path / "run", processor, has_begun=True)
    with pytest.raises(InputError, match=r"t\.parquet.*changed"):
        index.rows()[0]  # as a worker finds it
    # A run without a finished step uses the current table.
    assert prepared(table, tmp_path / "run", processor).rows()[5].regions[0].caption == other.caption


def test_another_tokenizer_counts_anew(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path, tiny_base: Path
) -> None:
    write_regions(tmp_path / "t.parquet", rows)
    several = prepared(tmp_path / "t.parquet", tmp_path / "run", processor)
    one = CaptionerProcessor.from_pretrained(str(tiny_base), tile_limit=1)
    assert (np.asarray(several.tiles) > 1).all()
    assert (np.asarray(prepared(tmp_path / "t.parquet", tmp_path / "run", one).tiles) == 1).all()


# ---- what it refuses, each in one line


def refusal(path: Path | str, processor: CaptionerProcessor, directory: Path) -> str:
    with pytest.raises(UrecaError) as refused:
        prepared(path, directory, processor)
    assert not (directory / "table_index").exists()
    assert "\n" not in str(refused.value)
    return f"{type(refused.value).__name__}: {refused.value}"


def test_a_missing_column_and_a_missing_field_of_regions(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    table = rows_to_table(rows[:2])
    pq.write_table(table.drop_columns(["height"]), tmp_path / "t.parquet")
    assert "column height missing" in refusal(tmp_path / "t.parquet", processor, tmp_path)
    records = table.to_pylist()
    for record in records:
        for region in record["regions"]:
            del region["caption"], region["attributes"]
    fields = [
        field for field in table.schema.field("regions").type.value_type if field.name in records[0]["regions"][0]
    ]
    schema = table.schema.set(table.schema.get_field_index("regions"), pa.field("regions", pa.list_(pa.struct(fields))))
    pq.write_table(pa.Table.from_pylist(records, schema=schema), tmp_path / "t.parquet")
    assert "t.parquet: regions.caption missing" in refusal(tmp_path / "t.parquet", processor, tmp_path)
    pq.write_table(table.set_column(2, "height", [["64", "tall"]]), tmp_path / "t.parquet")
    assert "a column's type differs" in refusal(tmp_path / "t.parquet", processor, tmp_path)


def test_another_version_and_what_is_no_table(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    table = rows_to_table(rows[:2]).replace_schema_metadata({b"ureca.region_table.version": b"9"})
    pq.write_table(table, tmp_path / "t.parquet")
    assert "region table of version 9; this package reads up to" in refusal(tmp_path / "t.parquet", processor, tmp_path)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut off")
    assert "not readable as parquet" in refusal(tmp_path / "t.parquet", processor, tmp_path)
    (tmp_path / "nothing").mkdir()
    assert "no parquet file in it" in refusal(tmp_path / "nothing", processor, tmp_path)
    assert "no such file or folder" in refusal(tmp_path / "nowhere.parquet", processor, tmp_path)


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_caption(
    empty: str | None, rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    path = write_records(tmp_path / "t.parquet", [*rows[:20], changed(rows[23], 2, long_caption=empty)])
    assert refusal(path, processor, tmp_path).startswith(
        f"InputError: {path}: image 'image23', region '2' is labeled, but its long_caption is empty"
    )


def test_a_mask_of_another_size_than_its_image(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    turned = {**rows[23].regions[1].segmentation, "size": [96, 64]}
    path = write_records(tmp_path / "t.parquet", [*rows[:20], changed(rows[23], 1, segmentation=turned)])
    assert refusal(path, processor, tmp_path).startswith(
        f"MaskSizeError: {path}: image 'image23', region '1' has an RLE of size [96, 64], its image is [64, 96]"
    )
    sizeless = {**turned, "size": []}
    path = write_records(tmp_path / "t.parquet", [changed(rows[23], 1, segmentation=sizeless)])
    with pytest.raises(MaskSizeError, match="'1'.*RLE"):
        prepared(path, tmp_path, processor)


@pytest.mark.parametrize(
    "box", [None, [], [1.0, 2.0, 3.0], [96.0, 0.0, 5.0, 5.0], [-9.0, 0.0, 9.0, 5.0], [1.0, 2.0, 0.0, 5.0]]
)
def test_a_box_that_is_none_or_outside_of_its_image(
    box: list[float] | None, rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    path = write_records(tmp_path / "t.parquet", [*rows[:20], changed(rows[23], 1, bbox=box)])
    message = refusal(path, processor, tmp_path)
    assert message.startswith(f"InputError: {path}: image 'image23', region '1'")
    assert str(box) in message
    assert "[64, 96]" in message
    reaching_out = [-1.5, 60.0, 5.0, 5.0]  # by a pixel or so: others round otherwise
    prepared(write_records(tmp_path / "t.parquet", [changed(rows[23], 1, bbox=reaching_out)]), tmp_path, processor)


@pytest.mark.parametrize("index", [4, -1])
def test_a_distractor_that_is_none_of_the_image_s_regions_where_pairs_are_learned_from(
    index: int, rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    received = [{"index": 0, "similarity": 1.0}, {"index": index, "similarity": 1.0}]
    path = write_records(tmp_path / "t.parquet", [*rows[:3], changed(rows[3], 2, distractors=received), *rows[4:]])
    prepared(path, tmp_path / "stage2", processor)  # which does not look at them
    with pytest.raises(InputError) as refused:
        prepare_index(
            str(path), tmp_path / "run", processor, heldout=0, heldout_seed=0, has_begun=False, rejected_per_region=2
        )
    assert str(refused.value).startswith(f"{path}: image 'image03', region '2' has the distractor {index}")


def test_nothing_labeled_and_no_row_at_all(processor: CaptionerProcessor, tmp_path: Path) -> None:
    write_regions(tmp_path / "t.parquet", [ImageRow.quarantined("a", None, "read", ValueError("cut"))])
    said = refusal(tmp_path / "t.parquet", processor, tmp_path)
    assert "none of its 1 images is labeled and not held out" in said
    assert "jobs/label_corpus.py" in said
    write_regions(tmp_path / "t.parquet", [])
    assert "none of its 0 images is labeled" in refusal(tmp_path / "t.parquet", processor, tmp_path)


def test_an_image_id_that_comes_twice(rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path) -> None:
    for number in (0, 1):
        write_regions(tmp_path / "table" / f"{number}.parquet", rows[:3])
    assert "image id 'image00' is repeated" in refusal(tmp_path / "table", processor, tmp_path)


def test_missing_image_files_are_counted_among_those_looked_at(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    lost = [replace(row, image_path=f"/nowhere/{row.image_id}.png") for row in rows[20:]]
    write_regions(tmp_path / "t.parquet", [*rows[:16], *lost])
    said = refusal(tmp_path / "t.parquet", processor, tmp_path)
    assert "/nowhere/image20.png: no such file" in said
    assert "Of the table's 36 labeled images 18 were sampled; 2 can't be used." in said


@pytest.mark.parametrize("place", ["file", "table"])
def test_an_image_of_another_size_than_the_table_s(
    place: str, rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    """The table and its masks agree; the image is another: it was scaled, or turned by a tool that heeds EXIF."""
    path = tmp_path / "scaled.png"
    Image.new("RGB", (48, 32)).save(path)
    row = replace(rows[2], image_path=str(path))
    if place == "table":
        row = replace(row, image_path=None, image_bytes=path.read_bytes())
    write_regions(tmp_path / "t.parquet", [*rows[:2], row, *rows[3:]])
    where = str(path) if place == "file" else "its bytes"
    message = refusal(tmp_path / "t.parquet", processor, tmp_path)
    assert message.startswith(f"ImageError: {tmp_path}/t.parquet: image 'image02': {where}: ")
    for found in ("[32, 48]", "[64, 96]", "1 can't be used"):
        assert found in message


def test_an_image_that_its_exif_note_turns_to_the_table_s_size_is_taken(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = [replace(rows[at], image_path=str(tmp_path / name)) for at, name in enumerate(("a.jpg", "b.png"))]
    for row in turned:
        Image.new("RGB", (64, 96)).save(row.image_path or "", exif=exif)
    write_regions(tmp_path / "t.parquet", [*turned, *rows[2:]])
    monkeypatch.setattr("ureca.training.data.table_scan._HEAD_BYTES", 30)  # too few bytes to read the size
    assert len(prepared(tmp_path / "t.parquet", tmp_path / "run", processor)) == 40


def test_a_mask_that_can_not_be_decoded_among_those_looked_at(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    broken = {"size": [64, 96], "counts": "zzzzz"}
    path = write_records(tmp_path / "t.parquet", [*rows[:3], changed(rows[3], 1, segmentation=broken), *rows[4:]])
    said = refusal(path, processor, tmp_path)
    assert said.startswith(f"MaskError: {path}: image 'image03', region '1' has an RLE")


def test_an_image_with_neither_path_nor_bytes(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    write_regions(tmp_path / "t.parquet", [*rows[:3], replace(rows[3], image_path=None)])
    with pytest.raises(ImageError, match="1.*'image03'.*0"):
        prepared(tmp_path / "t.parquet", tmp_path, processor)


def test_a_bucket_and_a_key_that_are_not_there(processor: CaptionerProcessor, tmp_path: Path, s3_bucket: str) -> None:
    said = refusal("s3://no-such-bucket/regions.parquet", processor, tmp_path)
    assert "s3://no-such-bucket/regions.parquet: there is no bucket 'no-such-bucket'" in said
    assert "no such file or folder" in refusal(f"{s3_bucket}/no/regions.parquet", processor, tmp_path)


def test_every_row_is_read_from_the_place_that_the_index_says(
    rows: list[ImageRow], processor: CaptionerProcessor, tmp_path: Path
) -> None:
    """Against the plain reader, on a table whose row groups another writer made as it liked."""
    path = write_records(tmp_path / "t.parquet", rows[::-1], row_group_size=7)
    index = prepared(path, tmp_path / "run", processor)
    plain = {row.image_id: row for row in iter_images(path)}
    read = index.rows()
    assert {read[number].image_id: read[number] for number in range(len(index))} == plain
    shutil.rmtree(tmp_path / "run")
