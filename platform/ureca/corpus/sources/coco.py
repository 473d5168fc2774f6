"""COCO and LVIS instances, and COCO panoptic: one annotation file for many images.

    {"images": [{"id", "file_name" | "coco_url", "height", "width"}, …],
     "annotations": [{"id", "image_id", "segmentation", "bbox", "iscrowd"}, …]}                     instances
     "annotations": [{"image_id", "file_name", "segments_info": [{"id", "iscrowd"}, …]}, …]}        panoptic

The file is streamed twice, once for images and once for annotations, and every image's annotations go into its manifest
row. Photos are searched in the usual places:

    annotations/instances_val2017.json   val2017/*.jpg
    annotations/panoptic_val2017.json    val2017/*.jpg    annotations/panoptic_val2017/*.png
    lvis_v1_val.json                     val2017/*.jpg, train2017/*.jpg    (from coco_url)
Source: cocodataset.org, "Data format"; lvisdataset.org, "Data format".
"""

import io as stdlib_io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import ijson

from ureca.corpus.sources.manifest import ManifestRow, Scratch, SourceSummary
from ureca.errors import InputError
from ureca.storage import files as io

_KEPT = ("id", "segmentation", "bbox", "iscrowd")
_READ_AHEAD = 4 * 2**20
"""Bytes per network read."""
_MAX_TRIED = 5
"""Files to try before a folder is rejected; some files of a corpus may be missing."""


def add_coco(source: str, rows: Scratch, *, images: str | None = None, masks: str | None = None) -> SourceSummary:
    """Add a row for every image of an annotation file.

    Raises:
        InputError: not in COCO's format, or its photos (or panoptic PNGs) are not found.
    """
    source = io.absolute(source)
    rows.execute("CREATE TABLE images (id TEXT PRIMARY KEY, name TEXT, height INT, width INT)")
    rows.execute("CREATE TABLE annotations (image_id TEXT, png TEXT, body TEXT)")
    _read_images(source, rows)
    _read_annotations(source, rows)
    rows.execute("CREATE INDEX annotations_of ON annotations (image_id)")
    ((num_images,),) = rows.execute("SELECT count(*) FROM images")
    if not num_images:
        raise InputError(f'{source}: not COCO annotations: no "images" in it. Use an instances or panoptic file.')
    names = [name for (name,) in rows.execute("SELECT name FROM images ORDER BY id LIMIT ?", (_MAX_TRIED,))]
    folder = _find(source, "photos", "images", images, names)
    pngs = [png for (png,) in rows.execute("SELECT png FROM annotations WHERE png NOT NULL LIMIT ?", (_MAX_TRIED,))]
    png_folder = _find(source, "panoptic PNGs", "masks", masks, pngs) if pngs else None
    for row in _rows(source, rows, folder, png_folder):
        rows.add(row)
    ((num_lost,),) = rows.execute("SELECT count(*) FROM annotations WHERE image_id NOT IN (SELECT id FROM images)")
    rows.execute("DROP TABLE images")
    rows.execute("DROP TABLE annotations")
    return SourceSummary(
        source=source,
        kind="COCO panoptic" if pngs else "COCO instances",
        num_images=num_images,
        num_with_masks=num_images,
        skipped=(f"skipped {num_lost:,} annotations of images that it does not list",) if num_lost else (),
    )


def _items(source: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a list in a JSON file of any size."""
    try:
        with io.open_input(source) as file:
            buffered = stdlib_io.BufferedReader(file, _READ_AHEAD)
            for item in ijson.items(buffered, prefix, use_float=True):
                if not isinstance(item, dict):
                    raise InputError(f"{source}: not COCO annotations: {prefix} holds {item!r:.60}, not an object.")
                yield item
    except ijson.JSONError as error:
        raise InputError(f"{source}: not valid JSON ({' '.join(str(error).split())}). It may be truncated.") from error


def _read_images(source: str, rows: Scratch) -> None:
    for item in _items(source, "images.item"):
        name = item.get("file_name") or "/".join(str(item.get("coco_url", "")).split("/")[-2:])
        if "id" not in item or not name:
            raise InputError(f"{source}: an image without id or file_name ({item!r:.100}). Use COCO's format.")
        values = (str(item["id"]), name, item.get("height"), item.get("width"))
        done = rows.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", values)
        if not done.rowcount:
            raise InputError(f"{source}: image id {item['id']!r} is repeated. Image ids must be unique.")


def _read_annotations(source: str, rows: Scratch) -> None:
    for item in _items(source, "annotations.item"):
        if "image_id" not in item:
            raise InputError(f"{source}: an annotation without image_id ({item!r:.100}). Use COCO's format.")
        segments = item.get("segments_info")
        if segments is None:
            # a box is only needed without a mask; it is a third of a small annotation
            body, png = json.dumps(_kept(item, without="bbox" if item.get("segmentation") else "")), None
        else:
            body, png = json.dumps([_kept(each, without="bbox") for each in segments]), item.get("file_name")
            if not png:
                raise InputError(f"{source}: a panoptic annotation without file_name. Use COCO's format.")
        rows.execute("INSERT INTO annotations VALUES (?, ?, ?)", (str(item["image_id"]), png, body))


def _kept(item: dict[str, Any], *, without: str) -> dict[str, Any]:
    return {key: item[key] for key in _KEPT if item.get(key) and key != without}


def _rows(source: str, rows: Scratch, folder: str, png_folder: str | None) -> Iterable[ManifestRow]:
    for image_id, name, height, width in rows.execute("SELECT * FROM images ORDER BY id"):
        path = f"{folder}/{name}"
        found = rows.execute(
            "SELECT png, body FROM annotations WHERE image_id = ? ORDER BY rowid", (image_id,)
        ).fetchall()
        head = json.dumps({"height": height, "width": width})
        png = found[0][0] if found else None
        bodies = found[0][1][1:-1] if png else ", ".join(body for _, body in found)
        yield ManifestRow(
            image_id=_stem(name),
            image_path=path,
            masks_path=f"{png_folder}/{png}" if png else source,
            masks_kind="id_map" if png else "record",
            record=f'{{"image": {head}, "annotations": [{bodies}]}}',
        )


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _find(source: str, what: str, option: str, given: str | None, names: list[str]) -> str:
    """Return the folder that holds one of `names`: the given one, or a usual place near the annotation file.

    Raises:
        InputError: none of them.
    """
    parent = source.rpartition("/")[0]
    above = parent.rpartition("/")[0]
    stem = PurePosixPath(source).stem
    split = stem.partition("_")[2]
    places = [
        f"{place}{below}"
        for place in (parent, above)
        for below in (f"/{stem}", f"/{split}", "", "/images", f"/images/{split}")
    ]
    if given is not None:
        places = [io.absolute(given)]
    for place in dict.fromkeys(places):
        if any(io.exists(f"{place}/{name}") for name in names):
            return place
    raise InputError(
        f"{source}: its {what} are not found: none of {', '.join(names)} in {', '.join(dict.fromkeys(places))}. Name "
        f"their folder: {source}:{option}=FOLDER."
    )
