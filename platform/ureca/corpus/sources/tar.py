"""Tar shards: location of each member, so that a worker reads only that member.

    sa_000020.tar    sa_223750.jpg, sa_223750.json, …    members may be in folders

Only the 512-byte header of each member is read.
"""

import io as stdlib_io
import os
import tarfile
from collections.abc import Iterator

from ureca.errors import InputError
from ureca.storage import files as io

_READ_AHEAD = 64 * 1024
"""Bytes per network read: a member's header, often a small member and the next header."""


def members_of_tar(path: str) -> Iterator[io.File]:
    """Yield the files in a tar; their paths are parts of it (`ureca.storage.files.part_of`).

    Raises:
        InputError: not a tar, or truncated.
    """
    num_members = 0
    with io.open_input(path) as stream:
        buffered = stdlib_io.BufferedReader(stream, _READ_AHEAD)
        try:
            with tarfile.open(fileobj=buffered, mode="r:") as tar:
                for member in tar:
                    num_members += 1
                    tar.members = []  # type: ignore[attr-defined]  # it keeps all it has seen
                    name = os.path.normpath(member.name)
                    if member.isreg() and not any(part.startswith(".") for part in name.split("/")):
                        yield io.File(name, io.part_of(path, name, member.offset_data, member.size))
        except tarfile.ReadError as error:
            raise InputError(
                f"{path}: not a tar, or truncated after {num_members} members ({error}). Download it again."
            ) from error
