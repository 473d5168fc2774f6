"""Files on a local disk and in S3."""

import errno
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest
from pyarrow import fs
from safetensors import SafetensorError

from ureca.errors import ConfigError, InputError, StorageError
from ureca.storage.files import (
    copy_folder,
    exists,
    file_bytes,
    file_name,
    filesystem,
    is_full_disk,
    list_files,
    list_folders,
    open_output,
    part_of,
    read_bytes,
    read_json,
    remove_folder,
    to_json,
    walk_files,
    write_bytes,
    write_json,
)


def test_write_bytes_creates_folders_and_reads_back(tmp_path):
    path = tmp_path / "a" / "b.bin"
    write_bytes(path, b"\x00\x01")
    write_bytes(str(path), b"\x02")
    assert read_bytes(f"file://{path}") == b"\x02"
    assert exists(path)
    assert [p.name for p in path.parent.iterdir()] == ["b.bin"]


def run_with_file_limit(limit_bytes: int, code: str) -> str:
    """Run Python code whose files can't exceed a size, like on a full disk; return its stdout."""
    head = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, check=True)
    return done.stdout


def test_full_disk_is_reported_and_keeps_old_file(tmp_path):
    old = tmp_path / "old.parquet"
    write_bytes(old, b"old")
    images = [{"id": number, "file_name": f"{number}-{'long' * 50}.jpg"} for number in range(8000)]
    write_json(tmp_path / "coco" / "a.json", {"images": images, "annotations": []})
    write_bytes(tmp_path / "coco" / images[0]["file_name"], b"")
    code = f"""
import os
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.parse import write_manifest
from ureca.corpus.table import write_regions
from ureca.errors import StorageError
from ureca.storage.files import write_bytes

def rows():
    for number in range(2000):
        yield ImageRow(image_id=f"{{number:09}}", image_bytes=os.urandom(999), height=1, width=1, status="unlabeled")

for write in (
    lambda: write_bytes({str(old)!r}, bytes(2_000_000)),
    lambda: write_regions({str(old)!r}, rows()),
    lambda: write_manifest([{str(tmp_path / "coco" / "a.json")!r}], {str(old)!r}),
):
    try:
        write()
    except StorageError as error:
        print(error)
"""
    errors = run_with_file_limit(1_000_000, code).splitlines()
    assert re.match(rf"{old}: .*disk is full", errors[0])
    assert "(File too large)" in errors[0]
    assert errors[1] == errors[0]
    assert re.match(r"/.*/ureca-manifest-\w+: .*\(.*\).* list of images", errors[2])
    assert len(errors) == 3
    assert read_bytes(old) == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco", "old.parquet"]


def write_and_fail(path: Path | str) -> None:
    with open_output(path) as file:
        file.write(bytes(PART_BYTES + 1))
        raise KeyError


PART_BYTES = 5 * 2**20
"""Minimum part size of S3, except for the last part."""


def test_open_output_failed_body_keeps_old_content(tmp_path, s3_bucket, monkeypatch):
    monkeypatch.setattr("ureca.storage.s3._UPLOAD_BYTES", PART_BYTES)
    for path in (tmp_path / "a.json", f"{s3_bucket}/halfway/a.json"):
        write_bytes(path, b"old")
        with pytest.raises(KeyError):
            write_and_fail(path)
        assert read_bytes(path) == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert list_files(f"{s3_bucket}/halfway") == [f"{s3_bucket}/halfway/a.json"]
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=s3_bucket.removeprefix("s3://"))


@pytest.mark.parametrize("num_bytes", [0, 5, PART_BYTES, PART_BYTES + 5])
def test_open_output_in_pieces_writes_to_s3(s3_bucket, monkeypatch, num_bytes):
    monkeypatch.setattr("ureca.storage.s3._UPLOAD_BYTES", PART_BYTES)
    data = bytes(num_bytes // 2) + bytes([7]) * (num_bytes - num_bytes // 2)
    with open_output(f"{s3_bucket}/pieces/{num_bytes}") as file:
        for first in range(0, num_bytes, 2_000_000):
            file.write(data[first : first + 2_000_000])
    assert read_bytes(f"{s3_bucket}/pieces/{num_bytes}") == data


def test_write_bytes_unwritable_path_is_named(tmp_path):
    write_bytes(tmp_path / "file", b"")
    with pytest.raises(StorageError, match="file/a"):
        write_bytes(tmp_path / "file" / "a", b"")


def test_read_bytes_without_descriptors_is_a_storage_error(tmp_path):
    write_bytes(tmp_path / "a", b"")
    code = f"""
import resource
from ureca.errors import StorageError
from ureca.storage.files import read_bytes
read_bytes({str(tmp_path / "a")!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    read_bytes({str(tmp_path / "a")!r})
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.match(rf"{tmp_path}/a: .*\(Too many open files\).*ulimit", done.stdout)


def test_read_bytes_of_gz_name_does_not_decompress(tmp_path):
    path = tmp_path / "a.gz"
    write_bytes(path, b"plain")
    assert read_bytes(path) == b"plain"


def test_read_json_missing_file_is_named(tmp_path):
    path = tmp_path / "none.json"
    with pytest.raises(InputError, match=f"^{path}: no such file"):
        read_json(path)
    assert not exists(path)


def test_read_json_truncated_file_reports_its_size(tmp_path):
    path = tmp_path / "half.json"
    path.write_text('{"a": ')
    with pytest.raises(InputError, match=r"half\.json:.*JSON.*6"):
        read_json(path)


def test_write_json_accepts_numpy_paths_and_nonfinite_floats(tmp_path):
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
    with pytest.raises(TypeError, match="JSON"):
        to_json(object())


def test_list_files_sorts_and_skips_incomplete_files(tmp_path):
    for name in ("b.parquet", "a.parquet", "_SUCCESS", ".a.parquet.x.partial", "c.json"):
        (tmp_path / name).touch()
    assert [Path(p).name for p in list_files(tmp_path, ".parquet")] == ["a.parquet", "b.parquet"]
    assert list_files(tmp_path / "c.json", ".json") == [str(tmp_path / "c.json")]
    assert list_files(tmp_path / "c.json", ".parquet") == []
    with pytest.raises(InputError, match="none: no such file or folder"):
        list_files(tmp_path / "none")


def test_part_of_file_is_read_like_a_file(tmp_path, s3_bucket):
    for whole in (tmp_path / "a.tar", f"{s3_bucket}/parts/a.tar"):
        write_bytes(whole, b"0123456789")
        part = part_of(whole, "folder/b#1.jpg", 3, 4)
        assert part == f"{whole}#folder/b_1.jpg:3+4"
        assert read_bytes(part) == b"3456"
        assert read_bytes(part, length=2) == read_bytes(whole, length=5)[3:] == b"34"
        assert file_name(part) == "b_1.jpg"
        with pytest.raises(InputError, match=r"c:8\+5:.*3"):
            read_bytes(part_of(whole, "c", 8, 5))
        with pytest.raises(InputError, match="d:0.1"):
            read_bytes(part_of(f"{whole}.none", "d", 0, 1))
    write_bytes(tmp_path / "photo #1:2+3.jpg", b"whole")
    assert read_bytes(tmp_path / "photo #1:2+3.jpg") == b"whole"
    assert file_name("s3://bucket/folder/a.png") == "a.png"


def test_walk_files_yields_visible_files_once(tmp_path, s3_bucket):
    for name in ("a.jpg", "b/c.jpg", "b/.hidden", ".trash/d.jpg", "b/e/f.json"):
        write_bytes(tmp_path / "corpus" / name, b"")
        write_bytes(f"{s3_bucket}/walk/{name}", b"")
    (tmp_path / "corpus" / "b" / "loop").symlink_to(tmp_path / "corpus")
    for folder in (str(tmp_path / "corpus"), f"{s3_bucket}/walk/"):
        found = sorted(walk_files(folder))
        assert [file.below for file in found] == ["a.jpg", "b/c.jpg", "b/e/f.json"]
        assert [file.path for file in found] == [f"{folder.rstrip('/')}/{file.below}" for file in found]
        with pytest.raises(InputError, match="none: no such folder"):
            walk_files(f"{folder}/none")


def test_filesystem_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match="^gs://bucket/x: gs://"):
        filesystem("gs://bucket/x")


def test_s3_file_is_written_listed_and_read(s3_bucket):
    write_json(f"{s3_bucket}/run/summary.json", {"a": 1})
    write_bytes(f"{s3_bucket}/run/b.bin", b"\x00")
    assert isinstance(filesystem(s3_bucket)[0], fs.S3FileSystem)
    assert read_json(f"{s3_bucket}/run/summary.json") == {"a": 1}
    assert list_files(f"{s3_bucket}/run", ".json") == [f"{s3_bucket}/run/summary.json"]
    assert exists(f"{s3_bucket}/run")
    assert not exists(f"{s3_bucket}/run/none")
    with pytest.raises(InputError, match="no such file"):
        read_bytes(f"{s3_bucket}/run/none")


class RefusingS3(BaseHTTPRequestHandler):
    """S3 server that refuses: 301 for a bucket of another region, else 403."""

    protocol_version = "HTTP/1.1"

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        moved = self.path.startswith("/moved")
        code = "PermanentRedirect" if moved else "AccessDenied"
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.send_response(301 if moved else 403)
        if moved:
            self.send_header("x-amz-bucket-region", "eu-west-1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = refuse  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def refusing_s3(monkeypatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), RefusingS3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SECRET_ACCESS_KEY": "wrong",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    server.shutdown()


def write_streamed(path: str) -> None:
    with open_output(path) as file:
        file.write(b"a")


S3_CALLS = {
    "exists": exists,
    "read": read_bytes,
    "write": lambda path: write_bytes(path, b""),
    "stream": write_streamed,
    "list": list_files,
    "walk": lambda path: list(walk_files(path)),
}


@pytest.mark.usefixtures("refusing_s3")
@pytest.mark.parametrize("call", S3_CALLS)
def test_s3_refusal_is_explained_in_one_line(monkeypatch, call):
    # a new bucket name per call: file systems are cached per bucket for the process
    code = "(ACCESS_DENIED|AccessDenied)"
    with pytest.raises(StorageError) as error:
        S3_CALLS[call](f"s3://private-{call}/a")
    assert re.fullmatch(rf"s3://private-{call}/a: .*AWS credentials.*\({code}\).*", str(error.value))
    with pytest.raises(StorageError) as error:
        S3_CALLS[call](f"s3://moved-{call}/a")
    assert re.fullmatch(
        rf"s3://moved-{call}/a: .*region.* Set AWS_REGION(=eu-west-1| to the bucket's own).", str(error.value)
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError) as error:
        S3_CALLS[call](f"s3://nobody-{call}/a")
    assert re.fullmatch(rf"s3://nobody-{call}/a: .*\({code}\).* AWS_ACCESS_KEY_ID .*", str(error.value))


@pytest.mark.usefixtures("refusing_s3")
def test_s3_without_answer_names_its_endpoint(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError) as error:
        read_bytes("s3://silent/a")
    assert re.match(r"s3://silent/a: .* http://127\.0\.0\.1:9 \(Could not connect to server\)", str(error.value))


@pytest.mark.usefixtures("s3_bucket")
def test_s3_missing_bucket_is_named():
    with pytest.raises(StorageError, match="s3://ureca-none/a:.*AWS_REGION"):
        write_bytes("s3://ureca-none/a", b"")
    with pytest.raises(InputError, match="s3://ureca-none/a"):
        read_bytes("s3://ureca-none/a")


def test_folders_are_listed_copied_and_removed(tmp_path, s3_bucket):
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "a.json").write_text("{}")
    (tmp_path / "from" / "deep" / "b.bin").write_bytes(b"b" * 100_000)
    for target in (str(tmp_path / "to"), f"{s3_bucket}/folders/to"):
        assert list_folders(target) == []
        remove_folder(target)  # does not exist yet
        copy_folder(tmp_path / "from", f"{target}/first", last="a.json")
        copy_folder(f"{target}/first", f"{target}/second")
        assert list_folders(target) == ["first", "second"]
        assert read_bytes(f"{target}/second/deep/b.bin") == b"b" * 100_000
        assert file_bytes(f"{target}/second/deep/b.bin") == 100_000
        assert file_bytes(f"{target}/second/deep") is None
        remove_folder(f"{target}/first")
        assert list_folders(target) == ["second"]
        assert sorted(file.below for file in walk_files(f"{target}/second")) == ["a.json", "deep/b.bin"]


def test_is_full_disk_recognizes_errno_and_safetensors_text():
    assert is_full_disk(OSError(errno.ENOSPC, "No space left on device"))
    assert is_full_disk(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
