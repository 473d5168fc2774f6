"""Tar shards: where each member lies, so that a worker reads it alone.

    sa_000020.tar    sa_223750.jpg, sa_223750.json, …    members may have a folder before their name

Only the heads of the members are read, 512 bytes each.
"""

import io as stdlib_io
import os
import tarfile
from collections.abc import Iterator

from ureca.errors import InputError
from ureca.storage import files as io

_READ_AHEAD = 64 * 1024
"""What comes over the network at once: the head of a member, and often a whole small one and the next head."""


def members_of_tar(path: str) -> Iterator[io.File]:
    """The files in a tar; their paths are parts of it (`ureca.storage.files.part_of`).

    Raises:
        InputError: no tar, or one that breaks off.
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
                f"{path}: no tar, or one that breaks off after {num_members} members ({error}). Download it again."
            ) from error
