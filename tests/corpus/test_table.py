"""The region table: rows come back as written, in small portions, and wrong tables are named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ureca.corpus import table as table_module
from ureca.corpus.read import photos_directory, read_sa1b
from ureca.corpus.schema import REGION_TABLE_SCHEMA, Distractor, ImageRow, Provenance, RegionRow
from ureca.corpus.table import canonical_digest, iter_images, load_image, read_regions, rows_to_table, write_regions
from ureca.errors import ImageError, InputError, MaskError
from ureca.regions.tree import build_mask_tree


def photo_row(name: str = "flower", *, by_reference: bool = True) -> ImageRow:
    """A labeled photo with every field filled."""
    path = photos_directory() / f"{name}.jpg"
    photo = read_sa1b(path, path.with_suffix(".json"))
    data, (height, width), masks = photo.data, photo.size, photo.masks
    regions = tuple(
        RegionRow(
            region_id=region.region_id,
            merged_ids=("a", "b") if index == 0 else (),
            parent=region.parent,
            depth=region.depth,
            segmentation=region.segmentation,
            area=region.area,
            bbox=region.bbox,
            short_caption=f"part {index}",
            long_caption=f"part {index} of the photo",
            caption=f"part {index} of {len(masks)}",
            distractors=(
                Distractor(index=0, similarity=0.5, told_apart_by="place"),
                Distractor(index=1, similarity=0),
            ),
            uniqueness=0.25,
            flags=("low_uniqueness",),
            attributes={"shape": "round", "color": "red"},
        )
        for index, region in enumerate(build_mask_tree(masks, (height, width)).regions)
    )
    return ImageRow(
        image_id=name,
        image_path=str(path) if by_reference else None,
        image_bytes=None if by_reference else data,
        height=height,
        width=width,
        status="labeled",
        regions=regions,
        provenance=Provenance(
            describer="attributes",
            model="none",
            prompt_version="1",
            prompt_tokens=7,
            completion_tokens=9,
            seconds=1.5,
            code_version="abc",
            requests={"short": 2, "unique": 1},
            retries={"refusal": 1},
            describer_seconds=0.5,
        ),
        notes={"zero_area": 2},
    )


def unlabeled(image_id: str) -> ImageRow:
    return ImageRow(image_id=image_id, image_path=f"/photos/{image_id}.jpg", height=2, width=3, status="unlabeled")


ROWS = [
    photo_row("flower"),
    photo_row("chelsea", by_reference=False),
    unlabeled("plain"),
    ImageRow.quarantined("lost", "/photos/lost.jpg", "read", MaskError("lost.json: an empty mask")),
]


def test_rows_come_back_as_written(tmp_path: Path):
    assert write_regions(tmp_path / "table" / "regions.parquet", iter(ROWS)) == len(ROWS)
    assert list(iter_images(tmp_path / "table" / "regions.parquet")) == ROWS
    assert list(iter_images(tmp_path / "table")) == ROWS
    table = read_regions(tmp_path / "table")
    assert table.schema.equals(REGION_TABLE_SCHEMA, check_metadata=True)
    assert table == rows_to_table(ROWS)


def test_quarantined_row_says_what_failed_where():
    row = ROWS[-1]
    assert row.status == "quarantined"
    assert row.error is not None
    assert (row.error.step, row.error.kind, row.error.message) == (
        "read",
        "MaskError",
        "lost.json: an empty mask",
    )


def test_rows_as_pandas_hands_them_out():
    """Ray Data's batches may be pandas: lists are arrays there, and heights floats as soon as one is null."""
    records = rows_to_table(ROWS).to_pandas().to_dict("records")
    assert isinstance(records[0]["regions"], np.ndarray)
    assert isinstance(records[0]["height"], float)
    rows = [ImageRow.from_record(record) for record in records]
    assert rows == ROWS
    json.dumps(rows[0].to_record())  # plain types again
    assert rows_to_table(rows) == rows_to_table(ROWS)


def test_table_of_another_writer_is_read(tmp_path: Path):
    """Large strings, a column that holds nothing but nulls, lists as null, another column next to ours."""
    records = [{**unlabeled(name).to_record(), "regions": None, "extra": 1} for name in ("a", "b")]
    table = pa.Table.from_pylist(records)
    table = table.set_column(0, "image_id", table["image_id"].cast(pa.large_string()))
    assert table.schema.field("error").type == pa.null()
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(iter_images(tmp_path)) == [unlabeled("a"), unlabeled("b")]


def test_table_of_version_1_is_read(tmp_path: Path):
    """As the package wrote it before there were notes and counts of requests."""
    columns, fields = rows_to_table(ROWS).drop_columns(["notes"]), []
    for field in columns.schema:
        if field.name == "provenance":
            field = field.with_type(pa.struct(list(field.type)[:7]))
        fields.append(field)
    old = columns.to_pylist()
    for record in old:
        for name in ("requests", "retries", "describer_seconds"):
            if record["provenance"]:
                del record["provenance"][name]
    schema = pa.schema(fields, metadata={table_module.SCHEMA_VERSION_KEY: b"1"})
    pq.write_table(pa.Table.from_pylist(old, schema=schema), tmp_path / "a.parquet")
    rows = list(iter_images(tmp_path / "a.parquet"))
    assert [row.regions for row in rows] == [row.regions for row in ROWS]
    assert all(row.notes == {} for row in rows)
    made = [row.provenance for row in rows if row.provenance]
    assert [(each.prompt_tokens, each.requests, each.describer_seconds) for each in made] == [(7, None, None)] * len(
        made
    )


def test_reading_holds_one_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "regions.parquet"
    write_regions(path, (unlabeled(str(number)) for number in range(200)))
    rows_per_group = table_module.ROWS_PER_GROUP
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_row_groups == -(-200 // rows_per_group)
    num_read = 0
    batches = table_module.iter_batches

    def counting(source: Any) -> Any:
        nonlocal num_read
        for batch in batches(source):
            num_read += batch.num_rows
            yield batch

    monkeypatch.setattr(table_module, "iter_batches", counting)
    rows = iter_images(path)
    assert [next(rows).image_id for _ in range(3)] == ["0", "1", "2"]
    assert num_read <= rows_per_group
    assert [row.image_id for row in rows] == [str(number) for number in range(3, 200)]


def test_writing_that_breaks_off_leaves_the_old_table_and_no_scraps(tmp_path: Path):
    path = tmp_path / "regions.parquet"
    write_regions(path, [unlabeled("old")])
    with pytest.raises(InputError, match="regions.parquet:.*'x'"):
        write_regions(path, [*(unlabeled(str(number)) for number in range(40)), unlabeled("x"), unlabeled("x")])
    assert [row.image_id for row in iter_images(path)] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_no_rows_make_an_empty_table(tmp_path: Path):
    assert write_regions(tmp_path / "a.parquet", []) == 0
    assert list(iter_images(tmp_path)) == []
    assert read_regions(tmp_path).num_rows == 0


def test_tables_in_s3(s3_bucket: str):
    path = f"{s3_bucket}/tables/regions.parquet"
    assert write_regions(path, ROWS) == len(ROWS)
    assert list(iter_images(f"{s3_bucket}/tables")) == ROWS


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            rows_to_table(ROWS[2:]).replace_schema_metadata({table_module.SCHEMA_VERSION_KEY: b"3"}),
            "a.parquet:.*3;.*2",
        ),
        (
            rows_to_table(ROWS[2:]).drop_columns(["regions"]),
            "a.parquet",
        ),
        (
            pa.table({name: pa.array([1]) for name in REGION_TABLE_SCHEMA.names}),
            "a.parquet",
        ),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, table: pa.Table, text: str):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=text):
        read_regions(tmp_path)


def test_missing_or_damaged_tables_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="nothing: no such file"):
        read_regions(tmp_path / "nothing")
    with pytest.raises(InputError, match="no parquet file"):
        read_regions(tmp_path)
    write_regions(tmp_path / "a.parquet", ROWS)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="a.parquet: .*readable as parquet"):
        read_regions(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"status": "done"}, "status 'done'.*unlabeled, labeled, quarantined"),
        ({"status": "quarantined"}, "status 'quarantined' with error None"),
        ({"height": None}, "status 'labeled' without the image's height and width"),
        ({"width": 5}, r"region '\w+' has an RLE of size \[427, 640\], the image is \[427, 5\]"),
    ],
)
def test_contradicting_rows_are_refused(change: dict[str, Any], text: str):
    with pytest.raises(InputError, match=f"region table row 'flower': {text}"):
        replace(ROWS[0], **change)


def test_parent_after_its_child_is_refused():
    regions = (replace(ROWS[0].regions[0], parent=1), *ROWS[0].regions[1:])
    with pytest.raises(InputError, match="parent"):
        replace(ROWS[0], regions=regions)


def test_image_by_reference_and_by_value_load_alike():
    pixels = load_image(photo_row("chelsea"))
    assert pixels.shape == (300, 451, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, load_image(photo_row("chelsea", by_reference=False)))


def test_image_that_is_missing_or_of_another_size_is_refused():
    with pytest.raises(ImageError, match="'plain': /photos/plain.jpg"):
        load_image(ROWS[2])
    with pytest.raises(ImageError, match="'plain'"):
        load_image(replace(ROWS[2], image_path=None))
    with pytest.raises(ImageError, match=r"\[300, 451\].*\[2, 3\]"):
        load_image(replace(ROWS[2], image_path=str(photos_directory() / "chelsea.jpg")))


def digest(folder: Path, *files: list[ImageRow]) -> str:
    for number, rows in enumerate(files):
        write_regions(folder / f"{number}.parquet", rows)
    return canonical_digest(folder)


def timed(row: ImageRow, seconds: float) -> ImageRow:
    assert row.provenance is not None
    return replace(row, provenance=replace(row.provenance, seconds=seconds))


def test_digest_ignores_order_files_and_timings(tmp_path: Path):
    first = digest(tmp_path / "a", ROWS)
    assert digest(tmp_path / "b", ROWS[::-1]) == first
    assert digest(tmp_path / "c", ROWS[2:], ROWS[:2]) == first
    assert digest(tmp_path / "d", [timed(ROWS[0], 99.0), *ROWS[1:]]) == first
    reordered = tuple(
        replace(region, attributes=dict(reversed((region.attributes or {}).items()))) for region in ROWS[0].regions
    )
    assert digest(tmp_path / "e", [replace(ROWS[0], regions=reordered), *ROWS[1:]]) == first


def with_region(**change: Any) -> list[ImageRow]:
    regions = (*ROWS[0].regions[:-1], replace(ROWS[0].regions[-1], **change))
    return [replace(ROWS[0], regions=regions), *ROWS[1:]]


@pytest.mark.parametrize(
    "changed",
    [
        with_region(caption="another"),
        with_region(uniqueness=0.5),
        with_region(distractors=()),
        with_region(attributes=None),
        [replace(ROWS[1], image_bytes=(ROWS[1].image_bytes or b"") + b"\n"), ROWS[0], *ROWS[2:]],
        [*ROWS[:3], ImageRow.quarantined("lost", "/photos/lost.jpg", "read", MaskError("another"))],
        ROWS[:3],
        [],
    ],
)
def test_digest_changes_with_the_content(tmp_path: Path, changed: list[ImageRow]):
    assert digest(tmp_path / "a", changed) != digest(tmp_path / "b", ROWS)


def test_digest_refuses_an_image_that_stands_in_two_files(tmp_path: Path):
    with pytest.raises(InputError, match="'flower'"):
        digest(tmp_path, ROWS, ROWS[:1])
