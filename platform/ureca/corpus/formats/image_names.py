"""What a format says of an image beside its regions: where its file is, and how its labels came about."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ureca.corpus.schema import ImageRow, Provenance
from ureca.errors import InputError
from ureca.storage import files as io

_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"BM": ".bmp", b"GI": ".gif", b"II": ".tif"}


@dataclass(frozen=True)
class ImageNames:
    """Names of image files in a file of a format, below a folder if one is given."""

    path: str
    """The file that the names stand in."""
    folder: str | None = None
    """The folder that names are relative to; None: names are whole paths, relative ones start at the file's folder."""

    def name(self, row: ImageRow) -> str:
        """The name of a row's image. One that the table holds in itself is written into a folder beside the file.

        Raises:
            InputError: the image is not in the folder, or the row has none.
            StorageError: it can't be written.
        """
        path = row.image_path
        if row.image_bytes is not None:
            suffix = _SUFFIXES.get(row.image_bytes[:2], ".img")
            path = f"{os.path.splitext(io.absolute(self.path))[0]}_images/{row.image_id}{suffix}"
            io.write_bytes(path, row.image_bytes)
        if path is None:
            raise InputError(f"image {row.image_id!r} has neither bytes nor a path in its table. Label it again.")
        if self.folder is None or row.image_bytes is not None:
            return path
        folder = io.absolute(self.folder)
        if not path.startswith(f"{folder}/"):
            raise InputError(f"{path} is not in the folder {folder}. Name a folder that all images are in, or none.")
        return path[len(folder) + 1 :]

    def image_id(self, name: str) -> str:
        """The id of an image that comes without: its name without the suffix, of a whole path the last part."""
        is_whole = "://" in name or os.path.isabs(name)
        return os.path.splitext(io.file_name(name) if is_whole else name)[0]

    def find(self, name: str) -> str:
        """The path of an image by its name."""
        if "://" in name or os.path.isabs(name):
            return name
        folder = io.absolute(self.folder) if self.folder else os.path.dirname(io.absolute(self.path))
        return f"{folder}/{name}"


def image_extras(row: ImageRow) -> dict[str, Any]:
    """Provenance and notes of a row, in JSON's own types."""
    provenance = None if row.provenance is None else {k: v for k, v in vars(row.provenance).items() if v is not None}
    return {"provenance": provenance, "notes": dict(row.notes)}


def with_extras(row: ImageRow, extras: Mapping[str, Any], where: str) -> ImageRow:
    """`row` with what `image_extras` gave; both may be missing.

    Raises:
        InputError: provenance or notes of another form.
    """
    provenance, notes = extras.get("provenance"), extras.get("notes") or {}
    known = {field.name for field in fields(Provenance)}
    is_known = provenance is None or (isinstance(provenance, Mapping) and set(provenance) <= known)
    if not is_known or not isinstance(notes, Mapping) or not all(isinstance(each, int) for each in notes.values()):
        raise InputError(f"{where}: 'provenance' or 'notes' are not as `ureca convert` writes them; leave them out.")
    return replace(
        row,
        provenance=None if provenance is None else Provenance(**provenance),
        notes=dict(notes),
    )
