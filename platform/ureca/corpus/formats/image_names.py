"""Image file names and image-level extras (provenance, notes) of a format."""

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
    """Names of image files in a format's file, relative to a folder if one is given."""

    path: str
    """The file that holds the names."""
    folder: str | None = None
    """Folder that names are relative to; None: names are paths, relative ones to the file's folder."""

    def name(self, row: ImageRow) -> str:
        """Return the name of a row's image. An image that the table holds is written to a folder next to the file.

        Raises:
            InputError: the image is outside the folder, or the row has none.
            StorageError: the image can't be written.
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
            raise InputError(f"{path} is not in the folder {folder}. Name a folder that holds all images, or none.")
        return path[len(folder) + 1 :]

    def image_id(self, name: str) -> str:
        """Derive an id for an image without one: its name without the suffix; for a full path its last part."""
        is_whole = "://" in name or os.path.isabs(name)
        return os.path.splitext(io.file_name(name) if is_whole else name)[0]

    def find(self, name: str) -> str:
        """Return the path of an image, given its name."""
        if "://" in name or os.path.isabs(name):
            return name
        folder = io.absolute(self.folder) if self.folder else os.path.dirname(io.absolute(self.path))
        return f"{folder}/{name}"


def image_extras(row: ImageRow) -> dict[str, Any]:
    """Return a row's provenance and notes in JSON types."""
    provenance = None if row.provenance is None else {k: v for k, v in vars(row.provenance).items() if v is not None}
    return {"provenance": provenance, "notes": dict(row.notes)}


def with_extras(row: ImageRow, extras: Mapping[str, Any], where: str) -> ImageRow:
    """Return `row` with the result of `image_extras`; both may be missing.

    Raises:
        InputError: malformed provenance or notes.
    """
    provenance, notes = extras.get("provenance"), extras.get("notes") or {}
    known = {field.name for field in fields(Provenance)}
    is_known = provenance is None or (isinstance(provenance, Mapping) and set(provenance) <= known)
    if not is_known or not isinstance(notes, Mapping) or not all(isinstance(each, int) for each in notes.values()):
        raise InputError(f"{where}: 'provenance' or 'notes' differ from what `ureca convert` writes; remove them.")
    return replace(
        row,
        provenance=None if provenance is None else Provenance(**provenance),
        notes=dict(notes),
    )
