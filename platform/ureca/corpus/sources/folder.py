"""Photos in a folder or in tar shards, each with its masks under its own name.

    NAME.jpg  NAME.json                  SA-1B's format, or the list of Segment Anything's automatic mode
    NAME.jpg  NAME/*.png  NAME_*.png     one PNG per region, e.g. from Segment Anything's scripts/amg.py
    NAME.jpg  NAME.png                   one PNG of region ids, as in PASCAL VOC
    NAME.jpg                             a photo without masks

The first existing form counts. With a separate folder of masks, the same names are searched there. If photos are PNGs
themselves, NAME_1.png next to NAME.png is a mask if it is gray or has a palette, and a photo if it is in color. Masks
without a photo become rows too, which fail when they are read. Source: facebookresearch/segment-anything README,
"Dataset", and scripts/amg.py; PASCAL VOC 2012, SegmentationObject.
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
"""Offset of a PNG file's color type: 2 and 6 are color."""


def add_photos(source: str, rows: Scratch, *, masks: str | None = None) -> SourceSummary:
    """Add the rows of a folder or a tar; `masks` is a separate folder of mask files.

    Raises:
        InputError: no photo, or one image id from two files.
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
            f"{source}: no image in it ({', '.join(IMAGE_SUFFIXES)}). Name the folder or .tar that holds the photos."
        )
    if annotation_files and not counts["num_with_masks"]:
        raise InputError(
            f"{source}: no photo has its own masks, but {annotation_files[0]} holds COCO annotations. Use "
            f"{annotation_files[0]}:images={source} as the source."
        )
    return SourceSummary(
        source=source,
        kind="tar shards" if num_shards else "photos",
        num_images=counts.total(),
        num_with_masks=counts["num_with_masks"],
        num_without_masks=counts["num_without_masks"],
        num_without_image=counts["num_without_image"],
        skipped=tuple(f"skipped {path}" for path in annotation_files),
    )


class _Listing:
    """The files of one source in the scratch database, by stem (path without the suffix)."""

    def __init__(self, rows: Scratch) -> None:
        self._do = rows.execute
        self._do("CREATE TABLE photos (stem TEXT, suffix TEXT, path TEXT, is_mask INT, PRIMARY KEY (stem, suffix))")
        self._do("CREATE TABLE masks (owner TEXT, rank INT, kind TEXT, path TEXT, PRIMARY KEY (owner, rank, path))")

    def drop(self) -> None:
        self._do("DROP TABLE photos")
        self._do("DROP TABLE masks")

    def add_photos(self, source: str, *, masks_are_beside: bool) -> int:
        """List the photos and the JSON files next to them; return the number of tar shards."""
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
            except sqlite3.IntegrityError:  # twice in a tar, or in a tar and in a folder of the same name
                ((other,),) = self._do("SELECT path FROM photos WHERE stem = ? AND suffix = ?", (stem, suffix))
                raise same_id(stem, other, found.path) from None
        elif suffix.lower() == ".json" and masks_are_beside:
            self._own(stem, "record", found.path)

    def add_masks(self, folder: str) -> None:
        """List the mask files of a separate folder."""
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
        """Find the PNGs that are masks of another photo."""
        for stem, suffix, path in self._do("SELECT stem, suffix, path FROM photos WHERE lower(suffix) = '.png'"):
            owned = self._owner(stem, path)
            if owned is not None:
                self._own(owned[0], owned[1], path)
                self._do("UPDATE photos SET is_mask = 1 WHERE stem = ? AND suffix = ?", (stem, suffix))

    def _owner(self, stem: str, path: str) -> tuple[str, MasksKind] | None:
        """Return the photo that the PNG `stem` is a mask of, and the kind of mask; None for a photo."""
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
                owner = self._owner(name, above)  # NAME_mask_1.png next to NAME_mask.png
                return owner[0] if owner else name, "pngs"
        return None

    def _suffixes(self, stem: str) -> list[str]:
        return [suffix for (suffix,) in self._do("SELECT suffix FROM photos WHERE stem = ?", (stem,))]

    def _own(self, owner: str, kind: MasksKind, path: str) -> None:
        self._do("INSERT INTO masks VALUES (?, ?, ?, ?)", (owner, _RANKS[kind], kind, path))

    def photos(self) -> Iterator[ManifestRow]:
        """Yield a row per photo, sorted."""
        for stem, path in self._do("SELECT stem, path FROM photos WHERE NOT is_mask ORDER BY stem, suffix"):
            yield self._row(stem, path)

    def masks_without_photo(self, root: str) -> Iterator[ManifestRow]:
        """Yield a row per stem with masks only; its photo is expected below `root`."""
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
    """Yield stems of photos that a region's PNG may belong to: its folder's name, then its own up to each "_"."""
    folder, name = os.path.split(stem)
    if folder:
        yield folder
    while "_" in name:
        name = name.rpartition("_")[0]
        yield os.path.join(folder, name)


def _members(shards: list[io.File]) -> Iterator[io.File]:
    """Yield the members of tars, each below a folder with the tar's name; several tars are read concurrently."""
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
    """Classify a JSON file without a photo of the same name; a damaged one may hold masks."""
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
