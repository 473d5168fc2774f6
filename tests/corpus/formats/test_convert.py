"""Every format there and back: captions, masks and tree are the same."""

from dataclasses import replace
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from ureca.cli.main import run
from ureca.corpus.formats.convert import FORMATS, Converted, export_regions, import_regions
from ureca.corpus.read import photos_directory
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import iter_images, load_image, write_regions
from ureca.errors import ConfigError, InputError
from ureca.regions.rle import decode_rle
from ureca.storage.files import list_files

OUT = {"coco": "captions.json", "jsonl": "captions.jsonl", "ureca_jsonl": "captions.jsonl", "datasets": "dataset"}


def there_and_back(table: str, folder: Path, name: str, images: str | None = None) -> list[ImageRow]:
    out, back = str(folder / OUT[name]), str(folder / "back.parquet")
    exported = export_regions(table, out, name, images if name != "ureca_jsonl" else None)
    imported = import_regions(out, back, name, images)
    assert exported == replace(imported, left_out=exported.left_out)
    return list(iter_images(back))


@pytest.mark.parametrize("name", ["coco", "jsonl", "datasets"])
def test_there_and_back_gives_the_same_regions(name: str, table: str, rows: list[ImageRow], tmp_path: Path):
    back = there_and_back(table, tmp_path, name)
    assert [row.image_id for row in back] == [row.image_id for row in rows]
    for before, after in zip(rows, back, strict=True):
        assert after.regions == before.regions
        assert (after.size, after.status) == (before.size, before.status)
        assert (load_image(after) == load_image(before)).all()
        if name != "jsonl":
            assert (after.provenance, after.notes) == (before.provenance, before.notes)


def test_the_authors_file_keeps_captions_and_finds_masks_in_the_corpus(
    table: str, rows: list[ImageRow], tmp_path: Path
):
    back = there_and_back(table, tmp_path, "ureca_jsonl", str(photos_directory()))
    assert [row.image_id for row in back] == ["coffee", "flower"]
    for before, after in zip(rows, back, strict=True):
        for old, new in zip(before.regions, after.regions, strict=True):
            assert new == replace(
                old,
                merged_ids=(),
                short_caption=None,
                long_caption=None,
                distractors=(),
                uniqueness=None,
                flags=(),
                attributes=None,
            )
        assert (load_image(after) == load_image(before)).all()


def test_coco_s_own_tool_reads_it(table: str, rows: list[ImageRow], tmp_path: Path):
    export_regions(table, str(tmp_path / "captions.json"), "coco", str(photos_directory()))
    coco = COCO(str(tmp_path / "captions.json"))
    for number, row in enumerate(rows, start=1):
        assert coco.loadImgs(number)[0]["file_name"] == Path(row.image_path).name
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        assert [each["caption"] for each in annotations] == [region.caption for region in row.regions]
        for annotation, region in zip(annotations, row.regions, strict=True):
            assert (coco.annToMask(annotation) == decode_rle(region.segmentation)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_carried_over_is_counted(name: str, table: str, rows: list[ImageRow], tmp_path: Path):
    done = export_regions(table, str(tmp_path / OUT[name]), name)
    regions = sum(len(row.regions) for row in rows)
    assert done == Converted(images=2, regions=regions, captions=regions, left_out=1)


@pytest.mark.parametrize("name", ["coco", "jsonl"])
def test_names_are_relative_to_a_folder_that_is_given(name: str, table: str, rows: list[ImageRow], tmp_path: Path):
    folder = str(photos_directory())
    back = there_and_back(table, tmp_path, name, folder)
    assert [row.image_path for row in back] == [row.image_path for row in rows]
    assert folder not in (tmp_path / OUT[name]).read_text()
    with pytest.raises(InputError, match="coffee.jpg.*/elsewhere"):
        export_regions(table, str(tmp_path / "other"), name, str(tmp_path / "elsewhere"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["coco", "jsonl"])
def test_images_inside_the_table_are_written_beside_the_file(name: str, rows: list[ImageRow], tmp_path: Path):
    data = Path(rows[0].image_path).read_bytes()
    write_regions(tmp_path / "inside.parquet", [replace(rows[0], image_path=None, image_bytes=data)])
    (after,) = there_and_back(str(tmp_path / "inside.parquet"), tmp_path, name)
    assert after.image_path == str(tmp_path / "captions_images" / "photos" / "coffee.jpg")
    assert Path(after.image_path).read_bytes() == data


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_with_nothing_to_write_leaves_no_file(name: str, rows: list[ImageRow], tmp_path: Path):
    bare = [replace(region, caption=None, short_caption=None, long_caption=None) for region in rows[0].regions]
    regions = tuple(bare) if name == "ureca_jsonl" else ()
    write_regions(tmp_path / "bare.parquet", [replace(rows[0], status="unlabeled", regions=regions)])
    with pytest.raises(InputError, match="bare.parquet: none of its 1 images has (a caption|regions). Label it first."):
        export_regions(str(tmp_path / "bare.parquet"), str(tmp_path / OUT[name]), name)
    assert not (tmp_path / OUT[name]).exists() or not list_files(tmp_path / OUT[name], ".md")


def test_a_tree_without_captions_can_be_looked_at_elsewhere(rows: list[ImageRow], tmp_path: Path):
    bare = tuple(replace(each, caption=None, short_caption=None, long_caption=None) for each in rows[0].regions)
    write_regions(tmp_path / "bare.parquet", [replace(rows[0], status="unlabeled", regions=bare)])
    (after,) = there_and_back(str(tmp_path / "bare.parquet"), tmp_path, "coco")
    assert (after.regions, after.status) == (bare, "unlabeled")


def test_there_and_back_over_s3(s3_bucket: str, table: str, rows: list[ImageRow], tmp_path: Path):
    for name in ("coco", "datasets"):
        out = f"{s3_bucket}/formats/{OUT[name]}"
        export_regions(table, out, name)
        import_regions(out, str(tmp_path / f"{name}.parquet"), name)
        assert [row.regions for row in iter_images(tmp_path / f"{name}.parquet")] == [row.regions for row in rows]


def test_the_command_tells_direction_by_the_output(
    table: str, rows: list[ImageRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, back = str(tmp_path / "captions.json"), str(tmp_path / "back.parquet")
    run(["convert", table, out, "--format", "coco"])
    num_regions = sum(len(row.regions) for row in rows)
    assert capsys.readouterr().out == (
        f"{out}  2 images  {num_regions} regions  {num_regions} captions\n"
        "skipped: 1 images without content for this format\n"
    )
    run(["convert", out, back, "--format", "coco"])
    assert capsys.readouterr().out == f"{back}  2 images  {num_regions} regions  {num_regions} captions\n"
    assert [row.image_id for row in iter_images(back)] == [row.image_id for row in rows]


def test_unknown_format_and_output_are_refused(table: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="'yolo':.*ureca_jsonl"):
        export_regions(table, str(tmp_path / "out"), "yolo")
    with pytest.raises(ConfigError, match="parquet"):
        import_regions(str(tmp_path / "captions.json"), "back", "coco")
