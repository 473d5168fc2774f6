"""Files on a local disk or in S3, behind the same few functions.

A path is a local path, `file:///…`, or `s3://bucket/key`. S3 goes through `pyarrow.fs`, which takes
credentials, region and endpoint from the environment as the AWS tools do (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, …).
A write on a local disk is atomic: a reader sees the old content or the new, never half of it.
"""

import dataclasses
import functools
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from pyarrow import fs

from ureca.errors import ConfigError, InputError

__all__ = [
    "exists",
    "filesystem",
    "list_files",
    "read_bytes",
    "read_json",
    "to_json",
    "write_bytes",
    "write_json",
]

AnyPath = str | os.PathLike[str]


@functools.cache
def _s3(bucket: str) -> fs.FileSystem:
    # Kept per bucket: making one asks S3 for the bucket's region.
    return fs.FileSystem.from_uri(f"s3://{bucket}")[0]


def filesystem(path: AnyPath) -> tuple[fs.FileSystem, str]:
    """The file system that holds `path`, and the path inside it (absolute for a local one).

    Raises:
        ConfigError: the path has a scheme other than `file` or `s3`.
    """
    text = os.fspath(path)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    if scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(rest)
    if scheme == "s3":
        rest = rest.rstrip("/")
        return _s3(rest.split("/", 1)[0]), rest
    raise ConfigError(f"{text}: {scheme}:// is not supported. Give a local path or s3://bucket/key.")


def _is_local(filesystem_: fs.FileSystem) -> bool:
    return isinstance(filesystem_, fs.LocalFileSystem)


def read_bytes(path: AnyPath) -> bytes:
    """The whole content of a file.

    Raises:
        InputError: there is no such file, or it can't be read.
    """
    where, inner = filesystem(path)
    try:
        with where.open_input_stream(inner, compression=None) as stream:
            return stream.read()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Check the path, and the folder it is relative to.") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error}).") from error


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write a file, making the folders above it. Atomic: on a local disk by renaming, in S3 by nature."""
    where, inner = filesystem(path)
    if not _is_local(where):
        with where.open_output_stream(inner, compression=None) as stream:
            stream.write(data)
        return
    target = Path(inner)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it readable for its owner alone
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@functools.cache
def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _jsonable(value: Any) -> Any:
    """`value` in JSON's own types. JSON has no NaN or infinity: they become the strings "NaN", "Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | int | float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return [_jsonable(item) for item in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays, without importing either
        return _jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} can't be written as JSON: {value!r}")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of dataclasses, dicts, sequences, paths and numpy values."""
    return json.dumps(_jsonable(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: AnyPath, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: AnyPath) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}). It may be truncated: {len(data)} bytes.") from error


def exists(path: AnyPath) -> bool:
    """Whether there is a file or folder at `path`."""
    where, inner = filesystem(path)
    return where.get_file_info(inner).type != fs.FileType.NotFound


def list_files(path: AnyPath, suffix: str = "") -> list[str]:
    """The files directly in a folder whose name ends in `suffix`, sorted, as paths these functions take.

    A file stands for itself, so that "one file or a folder of them" needs no case of its own. Names that
    start with `.` or `_` (half-written files, markers) are left out.

    Raises:
        InputError: there is neither a file nor a folder at `path`.
    """
    where, inner = filesystem(path)
    prefix = "" if _is_local(where) else "s3://"
    info = where.get_file_info(inner)
    if info.type == fs.FileType.File:
        return [prefix + inner] if inner.endswith(suffix) else []
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{path}: no such file or folder. Check the path, and the folder it is relative to.")
    found = where.get_file_info(fs.FileSelector(inner))
    return sorted(
        prefix + entry.path
        for entry in found
        if entry.type == fs.FileType.File
        and entry.base_name.endswith(suffix)
        and not entry.base_name.startswith((".", "_"))
    )
