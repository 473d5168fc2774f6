"""Column types that `datasets` uses, in the parquet files and in the card, and their agreement with the data."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ureca.corpus.formats import datasets_folder
from ureca.corpus.formats.convert import export_regions
from ureca.corpus.formats.datasets_folder import read_datasets
from ureca.corpus.schema import ImageRow


@pytest.fixture
def folder(table: str, tmp_path: Path) -> Path:
    export_regions(table, str(tmp_path / "dataset"), "datasets")
    return tmp_path / "dataset"


def arrow_type(feature: Any) -> pa.DataType:
    """As datasets' `get_nested_type`: what the data of a feature are stored as."""
    if isinstance(feature, list):
        return pa.list_(arrow_type(feature[0]))
    if feature.get("_type") == "Image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if feature.get("_type") == "Value":
        return pa.type_for_alias(feature["dtype"])
    return pa.struct([(name, arrow_type(inner)) for name, inner in feature.items()])


def from_card(entry: dict[str, Any]) -> Any:
    """As datasets' `_from_yaml_list`."""
    if "list" in entry:
        inner = entry["list"]
        return [from_card({"dtype": inner}) if isinstance(inner, str) else named(inner)]
    if "struct" in entry:
        return named(entry["struct"])
    return {"_type": "Image"} if entry["dtype"] == "image" else {"dtype": entry["dtype"], "_type": "Value"}


def named(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {entry["name"]: from_card(entry) for entry in entries}


def test_types_in_metadata_and_card_are_those_of_the_data(folder: Path):
    schema = pq.read_schema(folder / "data" / "train-00000.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    for field in schema:
        assert arrow_type(features[field.name]) == field.type
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert named(card["dataset_info"]["features"]) == features
    (config,) = card["configs"]
    (files,) = config["data_files"]
    assert [path.name for path in folder.glob(files["path"])] == ["train-00000.parquet"]


def test_images_are_inside(folder: Path, rows: list[ImageRow]):
    records = pq.read_table(folder / "data").to_pylist()
    for record, row in zip(records, rows, strict=True):
        with Image.open(io.BytesIO(record["image"]["bytes"])) as image:
            assert (image.height, image.width) == row.size == (record["height"], record["width"])
        assert record["image"]["path"] == Path(row.image_path).name


def test_a_large_table_is_spread_over_files(
    table: str, rows: list[ImageRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets_folder, "BYTES_PER_FILE", 1)
    monkeypatch.setattr(datasets_folder, "ROWS_PER_GROUP", 1)
    export_regions(table, str(tmp_path / "dataset"), "datasets")
    assert sorted(path.name for path in (tmp_path / "dataset" / "data").iterdir()) == [
        "train-00000.parquet",
        "train-00001.parquet",
    ]
    assert [row.regions for row in read_datasets(str(tmp_path / "dataset"))] == [row.regions for row in rows]


def test_datasets_loads_it(folder: Path, rows: list[ImageRow]):
    datasets = pytest.importorskip("datasets", reason="datasets is no part of the lock")
    loaded = datasets.load_dataset(str(folder), split="train")
    assert loaded[0]["image"].size == rows[0].size[::-1]
    assert [region["caption"] for region in loaded[0]["regions"]] == [region.caption for region in rows[0].regions]
