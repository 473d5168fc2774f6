"""Photos in a folder or in tar shards, each with its masks under its own name.

    NAME.jpg  NAME.json                  SA-1B's form, or the list that Segment Anything's automatic mode returns
    NAME.jpg  NAME/*.png  NAME_*.png     one PNG a region, e.g. as Segment Anything's scripts/amg.py writes them
    NAME.jpg  NAME.png                   one PNG of region ids, as PASCAL VOC has them
    NAME.jpg                             a photo without masks

The first of these that is there counts. With a folder of masks the same names are looked for there instead.
Where photos are PNGs themselves, NAME_1.png beside NAME.png is a mask if it is gray or has a palette, and a
photo of its own if it is in color. Masks without a photo become a row too, which fails when it is read.
Source: facebookresearch/segment-anything README, "Dataset", and scripts/amg.py; PASCAL VOC 2012, SegmentationObject.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import ijson

from ureca.corpus.sources.manifest import ManifestRow, MasksKind, Scratch, SourceSummary, same_id
from ureca.corpus.sources.tar import members_of_tar
from ureca.errors import InputError
from ureca.storage import files as io

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")

_RANKS: dict[MasksKind, int] = {"record": 0, "pngs": 1, "id_map": 2}
_TARS_AT_ONCE = 8
_PNG_COLOR_TYPE = 25
"""Place of the byte of a PNG file that says what its pixels are: 2 or 6 is color."""


def add_photos(source: str, rows: Scratch, *, masks: str | None = None) -> SourceSummary:
    """Add the rows of a folder or a tar; `masks` is a folder of mask files, where they are not beside the photos.

    Raises:
        InputError: no photo there, or one image id from two files.
    """
    listing = _Listing(rows)
    num_shards = listing.add_photos(source, masks_are_beside=masks is None)
    if masks is not None:
        listing.add_masks(masks)
    else:
        listing.find_masks_among_photos()
    counts: Counter[str] = Counter()
    for row in listing.photos():
        counts["num_without_masks" if row.masks_kind is None else "num_with_masks"] += 1
        rows.add(row)
    annotation_files = []
    for row in listing.masks_without_photo(io.absolute(source)):
        form = _form(row.masks_path or "") if row.masks_kind == "record" else "masks"
        if form == "masks":
            counts["num_without_image"] += 1
            rows.add(row)
        elif form == "coco":
            annotation_files.append(row.masks_path)
    listing.drop()
    if not counts:
        raise InputError(
            f"{source}: no image in it ({', '.join(IMAGE_SUFFIXES)}). Give the folder or .tar that holds the photos."
        )
    if annotation_files and not counts["num_with_masks"]:
        raise InputError(
            f"{source}: no photo has masks beside it, but {annotation_files[0]} holds COCO annotations. "
            f"Give {annotation_files[0]}:images={source} as the source."
        )
    return SourceSummary(
        source=source,
        kind="tar shards" if num_shards else "photos",
        num_images=counts.total(),
        num_with_masks=counts["num_with_masks"],
        num_without_masks=counts["num_without_masks"],
        num_without_image=counts["num_without_image"],
        passed_over=tuple(f"{path} passed over" for path in annotation_files),
    )


class _Listing:
    """The files of one source in the scratch database, by the stem of their names (path without the suffix)."""

    def __init__(self, rows: Scratch) -> None:
        self._do = rows.execute
        self._do("CREATE TABLE photos (stem TEXT, suffix TEXT, path TEXT, is_mask INT, PRIMARY KEY (stem, suffix))")
        self._do("CREATE TABLE masks (owner TEXT, rank INT, kind TEXT, path TEXT, PRIMARY KEY (owner, rank, path))")

    def drop(self) -> None:
        self._do("DROP TABLE photos")
        self._do("DROP TABLE masks")

    def add_photos(self, source: str, *, masks_are_beside: bool) -> int:
        """List the photos, and the JSON files beside them; returns how many tar shards they are in."""
        num_shards = 0
        files: Iterator[io.File]
        if io.is_folder(source):
            shards = []
            for found in io.walk_files(source):
                if found.below.lower().endswith(".tar"):
                    shards.append(found)
                else:
                    self._add(found, masks_are_beside)
            num_shards = len(shards)
            files = _members(shards)
        else:
            num_shards = 1
            files = members_of_tar(io.absolute(source))
        for found in files:
            self._add(found, masks_are_beside)
        return num_shards

    def _add(self, found: io.File, masks_are_beside: bool) -> None:
        stem, suffix = os.path.splitext(found.below)
        if suffix.lower() in IMAGE_SUFFIXES:
            try:
                self._do("INSERT INTO photos VALUES (?, ?, ?, 0)", (stem, suffix, found.path))
            except sqlite3.IntegrityError:  # twice in a tar, or in a tar and in a folder of its name
                ((other,),) = self._do("SELECT path FROM photos WHERE stem = ? AND suffix = ?", (stem, suffix))
                raise same_id(stem, other, found.path) from None
        elif suffix.lower() == ".json" and masks_are_beside:
            self._own(stem, "record", found.path)

    def add_masks(self, folder: str) -> None:
        """List the mask files of a folder of their own."""
        for found in io.walk_files(folder):
            stem, suffix = os.path.splitext(found.below)
            if suffix.lower() == ".json":
                self._own(stem, "record", found.path)
            elif suffix.lower() == ".png":
                if self._suffixes(stem):
                    self._own(stem, "id_map", found.path)
                else:
                    owners = [name for name in _possible_owners(stem) if self._suffixes(name)]
                    self._own(owners[0] if owners else stem, "pngs" if owners else "id_map", found.path)

    def find_masks_among_photos(self) -> None:
        """Tell PNGs that are masks of another photo from photos."""
        for stem, suffix, path in self._do("SELECT stem, suffix, path FROM photos WHERE lower(suffix) = '.png'"):
            owned = self._owner(stem, path)
            if owned is not None:
                self._own(owned[0], owned[1], path)
                self._do("UPDATE photos SET is_mask = 1 WHERE stem = ? AND suffix = ?", (stem, suffix))

    def _owner(self, stem: str, path: str) -> tuple[str, MasksKind] | None:
        """The photo whose mask the PNG `stem` is, and of which kind; None if it is a photo itself."""
        if any(suffix.lower() != ".png" for suffix in self._suffixes(stem)):
            return stem, "id_map"
        for name in _possible_owners(stem):
            suffixes = self._suffixes(name)
            if name == os.path.dirname(stem) and suffixes or any(suffix.lower() != ".png" for suffix in suffixes):
                return name, "pngs"
            if suffixes:
                if _is_in_color(path):
                    return None
                ((above,),) = self._do("SELECT path FROM photos WHERE stem = ? LIMIT 1", (name,))
                owner = self._owner(name, above)  # NAME_mask_1.png beside NAME_mask.png
                return owner[0] if owner else name, "pngs"
        return None

    def _suffixes(self, stem: str) -> list[str]:
        return [suffix for (suffix,) in self._do("SELECT suffix FROM photos WHERE stem = ?", (stem,))]

    def _own(self, owner: str, kind: MasksKind, path: str) -> None:
        self._do("INSERT INTO masks VALUES (?, ?, ?, ?)", (owner, _RANKS[kind], kind, path))

    def photos(self) -> Iterator[ManifestRow]:
        """A row for each photo, sorted."""
        for stem, path in self._do("SELECT stem, path FROM photos WHERE NOT is_mask ORDER BY stem, suffix"):
            yield self._row(stem, path)

    def masks_without_photo(self, root: str) -> Iterator[ManifestRow]:
        """A row for each stem that has masks alone; its photo should be below `root`."""
        for (stem,) in self._do(
            "SELECT DISTINCT owner FROM masks WHERE NOT EXISTS "
            "(SELECT 1 FROM photos WHERE stem = owner AND NOT is_mask) ORDER BY owner"
        ):
            yield self._row(stem, f"{root}/{stem}{IMAGE_SUFFIXES[0]}")

    def _row(self, stem: str, image_path: str) -> ManifestRow:
        found = self._do("SELECT kind, path FROM masks WHERE owner = ? ORDER BY rank, path", (stem,)).fetchall()
        if not found:
            return ManifestRow(image_id=stem, image_path=image_path)
        kind, first = found[0]
        return ManifestRow(
            image_id=stem,
            image_path=image_path,
            masks_path=first,
            masks_kind=kind,
            mask_files=tuple(path for other, path in found if other == kind) if kind == "pngs" else (),
        )


def _possible_owners(stem: str) -> Iterator[str]:
    """Stems of photos that a PNG of one region may belong to: its folder's name, then its own up to each "_"."""
    folder, name = os.path.split(stem)
    if folder:
        yield folder
    while "_" in name:
        name = name.rpartition("_")[0]
        yield os.path.join(folder, name)


def _members(shards: list[io.File]) -> Iterator[io.File]:
    """The members of tars, below a folder of each tar's name; several tars are looked through at once."""
    with ThreadPoolExecutor(_TARS_AT_ONCE) as pool:
        for first in range(0, len(shards), _TARS_AT_ONCE):
            some = shards[first : first + _TARS_AT_ONCE]
            for shard, members in zip(some, pool.map(_members_of, some), strict=True):
                stem = os.path.splitext(shard.below)[0]
                yield from (io.File(f"{stem}/{member.below}", member.path) for member in members)


def _members_of(shard: io.File) -> list[io.File]:
    return list(members_of_tar(shard.path))


def _is_in_color(path: str) -> bool:
    head = io.read_bytes(path, length=_PNG_COLOR_TYPE + 1)
    return len(head) > _PNG_COLOR_TYPE and head[_PNG_COLOR_TYPE] in (2, 6)


def _form(path: str) -> Literal["masks", "coco", "other"]:
    """What a JSON file without a photo of its name holds; a damaged one may be masks."""
    keys: set[str] = set()
    try:
        with io.open_input(path) as file:
            for prefix, event, value in ijson.parse(file):
                if prefix == "" and event == "map_key":
                    keys.add(value)
                    if {"image", "annotations"} <= keys:
                        return "masks"
                    if value == "images":
                        return "coco"
                if prefix == "item" and event == "map_key" and value == "segmentation":
                    return "masks"
    except ijson.JSONError:
        return "masks"
    return "other"
