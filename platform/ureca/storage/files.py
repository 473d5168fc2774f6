"""Files on a local disk or in S3, behind the same functions.

A path is a local path, `file:///…`, `s3://bucket/key`, or a part of such a file (`part_of`): a member of a tar is read
like a separate file. S3 uses `pyarrow.fs`, and boto3 for what pyarrow lacks: paged listing of large folders, and
aborting an incomplete upload. Both take credentials, region and endpoint from the environment as the AWS tools do
(AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, …). Writes are atomic on a local disk and in S3: a reader sees the old
content or the new, never a mixture.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from ureca.errors import ConfigError, InputError, StorageError
from ureca.storage import s3

AnyPath = str | os.PathLike[str]

_COPY_BYTES = 16 * 2**20
_PART = re.compile(r"(?P<path>.+)#(?P<name>[^#]+):(?P<offset>\d+)\+(?P<length>\d+)")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
"""Errors unrelated to the file: no descriptors or memory left, or a lost network folder."""


class File(NamedTuple):
    """A file found by `walk_files`."""

    below: str
    """Path relative to the folder that was walked."""
    path: str
    """Path for the functions of this module."""


@functools.cache
def _s3(bucket: str) -> fs.FileSystem:
    # Cached per bucket: creating one asks S3 for the bucket's region.
    return fs.FileSystem.from_uri(f"s3://{bucket}")[0]


def filesystem(path: AnyPath) -> tuple[fs.FileSystem, str]:
    """Return the file system that holds `path`, and the path inside it.

    The inner path of a local file is absolute.

    Raises:
        ConfigError: the path has a scheme other than `file` or `s3`.
        StorageError: the bucket can't be looked up.
    """
    text = os.fspath(path)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    if scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(rest)
    if scheme == "s3":
        rest = re.sub("/+", "/", rest).rstrip("/")
        with reading(text):
            return _s3(rest.split("/", 1)[0]), rest
    raise ConfigError(f"{text}: {scheme}:// is not supported. Give a local path or s3://bucket/key.")


def absolute(path: AnyPath) -> str:
    """Return the path, valid in any working folder, without a trailing slash."""
    where, inner = filesystem(path)
    return inner if _is_local(where) else f"s3://{inner}"


def _is_local(filesystem_: fs.FileSystem) -> bool:
    return isinstance(filesystem_, fs.LocalFileSystem)


@contextlib.contextmanager
def reading(path: AnyPath) -> Iterator[None]:
    """Convert read errors in the body to errors naming `path` and the remedy.

    Raises:
        InputError: there is no such file, or a local one can't be read.
        StorageError: S3 refuses or does not answer, or the machine can't open more files.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file. Check the path, and the folder it is relative to.") from None
    except Exception as error:
        if _is_s3(path) and _is_of_storage(error):
            raise StorageError(s3.finding(path, error)) from error
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            raise StorageError(
                f"{path}: can't be read ({os.strerror(error.errno or 0)}). The file itself may be intact; check this "
                "machine's limits (ulimit -n) and its network folders, and start again."
            ) from error
        if isinstance(error, OSError):
            raise InputError(f"{path}: can't be read ({error}).") from error
        raise


@contextlib.contextmanager
def _writing(path: AnyPath) -> Iterator[None]:
    """Like `reading`, for a write."""
    try:
        yield
    except Exception as error:
        if not _is_of_storage(error):
            raise
        if _is_s3(path):
            raise StorageError(s3.finding(path, error)) from error
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StorageError(
                f"{path}: can't be written, the disk is full or a quota is reached ({os.strerror(error.errno or 0)}). "
                "Free some space or write elsewhere; the previous content is unchanged."
            ) from error
        raise StorageError(f"{path}: can't be written ({error}). Check the folder and its permissions.") from error


def is_full_disk(error: BaseException) -> bool:
    """Return True if an error reports a full disk or quota; safetensors' errors do so only in their text.

    For a StorageError, its cause is checked.
    """
    if isinstance(error, StorageError) and error.__cause__ is not None:
        return is_full_disk(error.__cause__)
    return (isinstance(error, OSError) and error.errno in _FULL) or "(os error 28)" in str(error)


def _is_s3(path: AnyPath) -> bool:
    return os.fspath(path).startswith("s3://")


def _is_of_storage(error: Exception) -> bool:
    # boto3 raises its own classes; they must not be imported where S3 is not used.
    return isinstance(error, OSError) or any(kind.__module__.startswith("botocore.") for kind in type(error).__mro__)


def part_of(path: AnyPath, name: str, offset: int, length: int) -> str:
    """Return the path of `length` bytes of a file from `offset` on, e.g. of a tar's member `name`."""
    return f"{os.fspath(path)}#{name.replace('#', '_')}:{offset}+{length}"


def file_name(path: AnyPath) -> str:
    """Return the last component of a path; for a part, its name."""
    text = os.fspath(path)
    part = _PART.fullmatch(text)
    return (part["name"] if part else text).rsplit("/", 1)[-1]


def read_bytes(path: AnyPath, *, length: int | None = None) -> bytes:
    """Read a file, or its first `length` bytes.

    Raises:
        InputError: there is no such file, or it can't be read.
        StorageError: S3 refuses or does not answer.
    """
    part = _PART.fullmatch(os.fspath(path))
    where, inner = filesystem(part["path"] if part else path)
    with reading(path):
        if part is None:
            with where.open_input_stream(inner, compression=None) as stream:
                return stream.read(length)
        size = int(part["length"])
        with where.open_input_file(inner) as file:
            data = file.read_at(size if length is None else min(length, size), int(part["offset"]))
    if len(data) < size and len(data) != length:
        raise InputError(f"{path}: the file ends {size - len(data)} bytes before this part does. Copy it again.")
    return data


@contextlib.contextmanager
def open_input(path: AnyPath) -> Iterator[Any]:
    """Open a pyarrow file to read and seek in. Raises like `read_bytes`, in the body too."""
    if _PART.fullmatch(os.fspath(path)):
        yield pa.BufferReader(read_bytes(path))
        return
    where, inner = filesystem(path)
    with reading(path), where.open_input_file(inner) as file:
        yield file


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write a file atomically (local disk: rename; S3: single upload), creating parent folders.

    Raises:
        StorageError: the disk is full or read-only, or S3 refuses or does not answer.
    """
    where, inner = filesystem(path)
    if _is_local(where):
        with open_output(path) as file:
            file.write(data)
        return
    with _writing(path), where.open_output_stream(inner, compression=None) as stream:
        stream.write(data)


@contextlib.contextmanager
def open_output(path: AnyPath) -> Iterator[IO[bytes]]:
    """Open a file to write in pieces, creating parent folders; it appears when the body succeeds.

    If the body raises, the previous content of `path` is unchanged.

    Raises:
        StorageError: as `write_bytes`.
    """
    where, inner = filesystem(path)
    with _writing(path):
        if not _is_local(where):
            with s3.Upload(inner) as upload:
                yield upload  # type: ignore[misc]  # it has what a writer of bytes needs
            return
        target = Path(inner)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it readable only for its owner
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
    """Convert `value` to JSON types. JSON has no NaN or infinity: they become the strings "NaN", "Infinity"."""
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
    """Return JSON text of dataclasses, dicts, sequences, paths and numpy values."""
    return json.dumps(_jsonable(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: AnyPath, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: AnyPath) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}). It may be truncated: {len(data)} bytes.") from error


def exists(path: AnyPath) -> bool:
    """Return True if there is a file or folder at `path`. Raises StorageError like `read_bytes`."""
    return _info(path).type != fs.FileType.NotFound


def is_folder(path: AnyPath) -> bool:
    """Return True if there is a folder at `path`. Raises StorageError like `read_bytes`."""
    return bool(_info(path).type == fs.FileType.Directory)


def file_bytes(path: AnyPath) -> int | None:
    """Return the size of a file in bytes; None if there is none. Raises StorageError like `read_bytes`."""
    info = _info(path)
    return int(info.size) if info.type == fs.FileType.File else None


def list_folders(path: AnyPath) -> list[str]:
    """List the names of the folders directly in a folder, sorted; none if there is no such folder.

    Raises:
        StorageError: S3 refuses or does not answer.
    """
    where, inner = filesystem(path)
    with reading(path):
        found = where.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return sorted(entry.base_name for entry in found if entry.type == fs.FileType.Directory)


def remove_folder(path: AnyPath) -> None:
    """Remove a folder and its content, if it exists. Raises StorageError if that fails."""
    where, inner = filesystem(path)
    with _writing(path), contextlib.suppress(FileNotFoundError):
        where.delete_dir(inner)


def copy_folder(source: AnyPath, target: AnyPath, *, last: str = "") -> None:
    """Copy all files below a folder, each atomically, the one named `last` after all others.

    Raises:
        InputError: there is no such folder, or a file in it can't be read.
        StorageError: as `write_bytes`.
    """
    for file in sorted(walk_files(source), key=lambda file: (file.below == last, file.below)):
        with open_input(file.path) as stream, open_output(f"{os.fspath(target)}/{file.below}") as out:
            while piece := stream.read(_COPY_BYTES):
                out.write(piece)


def _info(path: AnyPath) -> fs.FileInfo:
    where, inner = filesystem(path)
    with reading(path):
        return where.get_file_info(inner)


def list_files(path: AnyPath, suffix: str = "") -> list[str]:
    """List the files directly in a folder whose name ends in `suffix`, sorted.

    The path of a single file returns that file, so "one file or a folder of them" is one case. Names that start with
    `.` or `_` (incomplete files, markers) are skipped.

    Raises:
        InputError: there is neither a file nor a folder at `path`.
        StorageError: S3 refuses or does not answer.
    """
    where, inner = filesystem(path)
    prefix = "" if _is_local(where) else "s3://"
    info = _info(path)
    if info.type == fs.FileType.File:
        return [prefix + inner] if inner.endswith(suffix) else []
    if info.type == fs.FileType.NotFound:
        bucket = inner.split("/", 1)[0]
        if prefix and _info(prefix + bucket).type == fs.FileType.NotFound:
            raise InputError(f"{path}: there is no bucket {bucket!r}. Check its name, and the endpoint and region.")
        raise InputError(f"{path}: no such file or folder. Check the path, and the folder it is relative to.")
    with reading(path):
        found = where.get_file_info(fs.FileSelector(inner))
    return sorted(
        prefix + entry.path
        for entry in found
        if entry.type == fs.FileType.File
        and entry.base_name.endswith(suffix)
        and not entry.base_name.startswith((".", "_"))
    )


def walk_files(path: AnyPath) -> Iterator[File]:
    """Yield all files below a folder, unordered, holding at most one folder's names (S3: 1,000) in memory.

    Names that start with `.` are skipped, with their subtree. Symbolic links are followed.

    Raises:
        InputError: no such folder.
        StorageError: S3 refuses or does not answer.
    """
    if not is_folder(path):
        raise InputError(f"{path}: no such folder. Check the path, and the folder it is relative to.")
    where, inner = filesystem(path)
    return _walk_local(inner) if _is_local(where) else _walk_s3(inner)


def _walk_local(root: str) -> Iterator[File]:
    seen: set[tuple[int, int]] = set()  # a link may point back to a parent folder
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                found = os.path.join(folder, name)
                yield File(os.path.relpath(found, root), found)


def _walk_s3(inner: str) -> Iterator[File]:
    with reading(f"s3://{inner}"):
        for below, found in s3.list_objects(inner):
            if not any(part.startswith(".") for part in below.split("/")):
                yield File(below, f"s3://{found}")
