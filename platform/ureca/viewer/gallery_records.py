"""Convert rows of the region table for the gallery page: pictures separate from searchable records.

    picture   {"jpeg": base64, "height", "width", "paths": [d of each region's outline, in picture pixels]}
    record    ids, tree, captions, distractors, flags, source: small enough to hold all in memory

gallery.js documents the keys and reads them.
"""

from __future__ import annotations

import base64
import dataclasses
import io as memory
from typing import Any

import numpy as np
from PIL import Image

from ureca.attributes.vocabulary import size_of
from ureca.corpus.images import decode_image
from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.table import load_image
from ureca.errors import UrecaError
from ureca.storage import files as io
from ureca.viewer.draw import outline, region_color, to_css, to_size

LONGEST_PX = 640
"""Longest side of a picture; 60 to 100 kB for a photo."""


def picture_of(row: ImageRow) -> dict[str, Any]:
    """Return the scaled image and its regions' outlines; `missing` gives the reason if the image can't be read."""
    try:
        image = _pixels(row)
    except (UrecaError, OSError) as error:
        size = (row.height or 3, row.width or 4)
        picture: dict[str, Any] = {"missing": str(error)}
    else:
        size = (image.shape[0], image.shape[1])
        picture = {"jpeg": base64.b64encode(_jpeg(image)).decode()}
    longest = min(LONGEST_PX, max(size))
    height, width = to_size(size, longest)
    paths = [outline(region.segmentation, longest_px=longest, tolerance_px=longest / 1000) for region in row.regions]
    return {**picture, "height": height, "width": width, "paths": paths}


def record_of(row: ImageRow) -> dict[str, Any]:
    """Return everything the page shows of an image except its picture."""
    facts = {**dataclasses.asdict(row.provenance)} if row.provenance else {}
    notes = facts.pop("notes", None) or {}
    return {
        "id": row.image_id,
        "path": row.image_path,
        "size": [row.height, row.width],
        "status": row.status,
        "error": dataclasses.asdict(row.error) if row.error else None,
        "facts": [[name.replace("_", " "), value] for name, value in facts.items() if value is not None],
        "notes": [[name.replace("_", " "), count] for name, count in notes.items()],
        "regions": [_region(region, index, row) for index, region in enumerate(row.regions)],
    }


def _region(region: RegionRow, index: int, row: ImageRow) -> dict[str, Any]:
    height, width = row.size
    share = region.area / (height * width)
    return {
        "id": region.region_id,
        "merged": list(region.merged_ids),
        "parent": region.parent,
        "depth": region.depth,
        "color": to_css(region_color(index + 1)),
        "area": region.area,
        "share": share,
        "size": size_of(share),
        "box": [round(value) for value in region.bbox],
        "short": region.short_caption,
        "long": region.long_caption,
        "caption": region.caption,
        "distractors": [[each.index, round(each.similarity, 3), each.told_apart_by] for each in region.distractors],
        "uniqueness": region.uniqueness,
        "flags": [flag.replace("_", " ") for flag in region.flags],
        "attributes": list((region.attributes or {}).items()),
    }


def _pixels(row: ImageRow) -> np.ndarray:
    if row.status != "quarantined":
        return load_image(row)
    # Size may be unknown or the reason for the quarantine; show the image if possible.
    data = row.image_bytes or io.read_bytes(row.image_path or "")
    return decode_image(data, where=row.image_id)


def _jpeg(image: np.ndarray) -> bytes:
    picture = Image.fromarray(image)
    if max(picture.size) > LONGEST_PX:
        height, width = to_size((picture.height, picture.width), LONGEST_PX)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = memory.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True, progressive=True)
    return buffer.getvalue()
