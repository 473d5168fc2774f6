"""One region as a self-contained record, as the formats write it.

    region_id        its id in the image
    caption          the unique caption; also short_caption, long_caption
    segmentation     COCO RLE
    area, bbox       pixels; x, y, width, height
    parent_id        parent region, null at the top level
    depth            0 at the top level
    merged_ids       near-duplicates merged into it
    distractors      [{"region_id", "similarity", "told_apart_by"}, …]
    uniqueness, flags, attributes

Other regions are named by id, so a line is readable alone. Reading requires only `segmentation`. Missing ids are
numbered, and if no region of an image names its parent, the mask tree is built from the masks. `area`, `bbox` and
`depth` are always recomputed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ureca.corpus.schema import Distractor, ImageRow, RegionRow
from ureca.errors import InputError, MaskError
from ureca.regions.rle import Rle, Size, check_rles, polygon_to_rle, rle_areas, rle_bboxes
from ureca.regions.tree import Mask, TreeConfig, build_mask_tree

Record = Mapping[str, Any]

_CAPTIONS = ("caption", "short_caption", "long_caption")
_KEEP_ALL = TreeConfig(merge_iou=None, min_area_px=0)
"""Captioned regions are kept: none is merged or dropped."""


def region_records(row: ImageRow) -> list[dict[str, Any]]:
    """Return the regions of an image as records, in order."""
    ids = [region.region_id for region in row.regions]
    return [
        {
            "region_id": region.region_id,
            "caption": region.caption,
            "short_caption": region.short_caption,
            "long_caption": region.long_caption,
            "segmentation": dict(region.segmentation),
            "area": region.area,
            "bbox": list(region.bbox),
            "parent_id": ids[region.parent] if region.parent >= 0 else None,
            "depth": region.depth,
            "merged_ids": list(region.merged_ids),
            "distractors": [
                {"region_id": ids[each.index], "similarity": each.similarity, "told_apart_by": each.told_apart_by}
                for each in region.distractors
            ],
            "uniqueness": region.uniqueness,
            "flags": list(region.flags),
            "attributes": region.attributes,
        }
        for region in row.regions
    ]


def with_regions(row: ImageRow, records: Sequence[Record], where: Sequence[str]) -> ImageRow:
    """Return `row`, which has a size, with the regions of `records`, parents first, otherwise in order.

    `where` names each record in errors, e.g. "captions.jsonl line 7". A row with any caption is labeled.

    Raises:
        InputError: a key is missing or malformed, an id is repeated, or a parent is missing.
        MaskError: a mask that is damaged, empty, or of another size.
    """
    ids = [
        _text(record, "region_id", name) or str(number)
        for number, (record, name) in enumerate(zip(records, where, strict=True), start=1)
    ]
    places: dict[str, int] = {}
    for index, (region_id, name) in enumerate(zip(ids, where, strict=True)):
        if places.setdefault(region_id, index) != index:
            raise InputError(
                f"{name}: region {region_id!r} of image {row.image_id!r} exists already, in "
                f"{where[places[region_id]]}. Region ids must be unique in an image."
            )
    masks = _masks(records, row.size, where)
    parents = _given_parents(row.image_id, records, places, where)
    if parents is None:
        tree = build_mask_tree([Mask(*pair) for pair in zip(ids, masks, strict=True)], row.size, _KEEP_ALL)
        order = [places[region.region_id] for region in tree.regions]
        parents = {index: order[tree.regions[new].parent] for new, index in enumerate(order)}
        parents.update({index: -1 for new, index in enumerate(order) if tree.regions[new].parent < 0})
    depths = _depths(row.image_id, parents, where)
    order = _parents_first(parents, depths)
    new_places = {old: new for new, old in enumerate(order)} | {-1: -1}
    areas, boxes = rle_areas(masks), rle_bboxes(masks)
    regions = tuple(
        RegionRow(
            region_id=ids[old],
            parent=new_places[parents[old]],
            depth=depths[old],
            segmentation=masks[old],
            area=int(areas[old]),
            bbox=boxes[old],
            merged_ids=tuple(_texts(records[old], "merged_ids", where[old])),
            short_caption=_text(records[old], "short_caption", where[old]),
            long_caption=_text(records[old], "long_caption", where[old]),
            caption=_text(records[old], "caption", where[old]),
            distractors=_distractors(records[old], places, new_places, where[old]),
            uniqueness=_number(records[old], "uniqueness", where[old]),
            flags=tuple(_texts(records[old], "flags", where[old])),
            attributes=_attributes(records[old], where[old]),
        )
        for old in order
    )
    is_labeled = any(getattr(region, name) is not None for region in regions for name in _CAPTIONS)
    return replace(row, regions=regions, status="labeled" if is_labeled else row.status)


def need(record: Any, key: str, where: str) -> Any:
    """Return `record[key]`.

    Raises:
        InputError: `record` is not an object, or lacks the key.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: {_short(record)} is not an object. It must be {{…}} with the key {key!r}.")
    if record.get(key) is None:
        raise InputError(f"{where}: key {key!r} is missing; found {', '.join(record) or 'none'}.")
    return record[key]


def _masks(records: Sequence[Record], size: Size, where: Sequence[str]) -> list[Rle]:
    """Return each record's mask; COCO polygons are filled."""
    found = []
    for record, name in zip(records, where, strict=True):
        segmentation = need(record, "segmentation", name)
        if isinstance(segmentation, list):
            try:
                segmentation = polygon_to_rle(segmentation, size)
            except MaskError as error:
                raise MaskError(f"{name}: {error}") from error
        found.append(segmentation)
    return check_rles(found, size, where=[f"{name}: key 'segmentation'" for name in where])


def _given_parents(
    image_id: str, records: Sequence[Record], places: Mapping[str, int], where: Sequence[str]
) -> dict[int, int] | None:
    """Map each index to its parent's, -1 at the top level; None if no record names a parent."""
    silent = [index for index, record in enumerate(records) if "parent_id" not in record]
    if len(silent) == len(records):
        return None
    if silent:
        raise InputError(
            f"{where[silent[0]]}: key 'parent_id' is missing, but other regions of image {image_id!r} have it. Set it "
            "for all regions of an image, null at the top level, or for none."
        )
    parents = {}
    for index, (record, name) in enumerate(zip(records, where, strict=True)):
        parent_id = _text(record, "parent_id", name)
        if parent_id is not None and parent_id not in places:
            raise InputError(
                f"{name}: key 'parent_id': image {image_id!r} has no region {parent_id!r}. Use the id of one of its "
                "regions, or null at the top level."
            )
        parents[index] = -1 if parent_id is None else places[parent_id]
    return parents


def _depths(image_id: str, parents: Mapping[int, int], where: Sequence[str]) -> dict[int, int]:
    depths = {-1: -1}
    for start in parents:
        path: list[int] = []
        index = start
        while index not in depths:
            if len(path) > len(parents):
                raise InputError(f"{where[start]}: key 'parent_id': in image {image_id!r} the parents form a cycle.")
            path.append(index)
            index = parents[index]
        for step, below in enumerate(reversed(path), start=1):
            depths[below] = depths[index] + step
    return depths


def _parents_first(parents: Mapping[int, int], depths: Mapping[int, int]) -> list[int]:
    """Return the records' order, or, if a child precedes its parent, an order by depth."""
    order = sorted(parents)
    if any(parents[index] > index for index in order):
        order.sort(key=lambda index: depths[index])
    return order


def _distractors(
    record: Record, places: Mapping[str, int], new_places: Mapping[int, int], where: str
) -> tuple[Distractor, ...]:
    found = []
    for item in _list(record, "distractors", where):
        region_id = str(need(item, "region_id", f"{where}: key 'distractors'"))
        if region_id not in places:
            raise InputError(f"{where}: key 'distractors': its image has no region {region_id!r}.")
        similarity = _number(item, "similarity", f"{where}: key 'distractors'")
        found.append(
            Distractor(
                index=new_places[places[region_id]],
                similarity=1.0 if similarity is None else similarity,
                told_apart_by=_text(item, "told_apart_by", f"{where}: key 'distractors'"),
            )
        )
    return tuple(found)


def _attributes(record: Record, where: str) -> dict[str, str] | None:
    value = record.get("attributes")
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise InputError(f"{where}: key 'attributes' is {_short(value)}: must be an object of texts; or omit it.")
    return dict(value)


def _text(record: Record, key: str, where: str) -> str | None:
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    if key.endswith("_id") and isinstance(value, int):
        return str(value)
    raise InputError(f"{where}: key {key!r} is {_short(value)}: must be a text; or omit it.")


def _texts(record: Record, key: str, where: str) -> list[str]:
    values = _list(record, key, where)
    if not all(isinstance(value, str) for value in values):
        raise InputError(f"{where}: key {key!r} is {_short(values)}: must be a list of texts; or omit it.")
    return values


def _list(record: Record, key: str, where: str) -> list[Any]:
    value = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{where}: key {key!r} is {_short(value)}: must be a list; or omit it.")
    return value


def _number(record: Record, key: str, where: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise InputError(f"{where}: key {key!r} is {_short(value)}: must be a number; or omit it.")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
