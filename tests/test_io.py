"""Files, local and in S3."""

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from ureca.errors import ConfigError, InputError
from ureca.io import exists, filesystem, list_files, read_bytes, read_json, to_json, write_bytes, write_json


def test_written_bytes_are_read_back_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b.bin"
    write_bytes(path, b"\x00\x01")
    write_bytes(str(path), b"\x02")
    assert read_bytes(f"file://{path}") == b"\x02"
    assert exists(path)
    assert [p.name for p in path.parent.iterdir()] == ["b.bin"]


def test_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert read_bytes(path) == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_compressed_looking_name_is_not_unpacked(tmp_path):
    path = tmp_path / "a.gz"
    write_bytes(path, b"plain")
    assert read_bytes(path) == b"plain"


def test_missing_file_is_an_input_error_naming_it(tmp_path):
    path = tmp_path / "none.json"
    with pytest.raises(InputError, match=f"^{path}: no such file"):
        read_json(path)
    assert not exists(path)


def test_truncated_json_is_an_input_error_with_its_size(tmp_path):
    path = tmp_path / "half.json"
    path.write_text('{"a": ')
    with pytest.raises(InputError, match=r"half\.json: not valid JSON .* 6 bytes"):
        read_json(path)


def test_json_takes_numpy_paths_and_what_json_has_no_number_for(tmp_path):
    write_json(
        tmp_path / "a.json",
        {
            "n": np.int64(3),
            "a": np.arange(2),
            "p": Path("x"),
            "nan": float("nan"),
            "inf": -np.inf,
            "t": (1, None),
        },
    )
    expected = {"n": 3, "a": [0, 1], "p": "x", "nan": "NaN", "inf": "-Infinity", "t": [1, None]}
    assert read_json(tmp_path / "a.json") == expected
    assert json.loads(to_json(np.float32("nan"))) == "NaN"
    with pytest.raises(TypeError, match="object can't be written as JSON"):
        to_json(object())


def test_listing_is_sorted_and_leaves_out_half_written_files(tmp_path):
    for name in ("b.parquet", "a.parquet", "_SUCCESS", ".a.parquet.x.partial", "c.json"):
        (tmp_path / name).touch()
    assert [Path(p).name for p in list_files(tmp_path, ".parquet")] == ["a.parquet", "b.parquet"]
    assert list_files(tmp_path / "c.json", ".json") == [str(tmp_path / "c.json")]
    assert list_files(tmp_path / "c.json", ".parquet") == []
    with pytest.raises(InputError, match="none: no such file or folder"):
        list_files(tmp_path / "none")


def test_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match=r"^gs://bucket/x: gs:// is not supported"):
        filesystem("gs://bucket/x")


def test_a_file_in_s3_is_written_listed_and_read(s3_bucket):
    write_json(f"{s3_bucket}/run/summary.json", {"a": 1})
    write_bytes(f"{s3_bucket}/run/b.bin", b"\x00")
    assert isinstance(filesystem(s3_bucket)[0], fs.S3FileSystem)
    assert read_json(f"{s3_bucket}/run/summary.json") == {"a": 1}
    assert list_files(f"{s3_bucket}/run", ".json") == [f"{s3_bucket}/run/summary.json"]
    assert exists(f"{s3_bucket}/run")
    assert not exists(f"{s3_bucket}/run/none")
    with pytest.raises(InputError, match="no such file"):
        read_bytes(f"{s3_bucket}/run/none")
