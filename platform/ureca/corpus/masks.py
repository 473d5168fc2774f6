"""Masks of one image from corpus formats: SA-1B and COCO records, PNG files.

    record    {"image": {"height", "width"}, "annotations": [{"id", "segmentation", "bbox", "iscrowd"}, …]}
              segmentation: RLE with counts as a string or a list, or polygons; without one the bbox (x, y, w, h)
    id map    one PNG: every value but 0 is a region; color values are R + 256 G + 65536 B
    PNGs      one PNG per region: the mask is not black (or, cut out with alpha, opaque)

Repairs are counted under these names:
    empty_masks        no pixel set; dropped
    crowds             COCO's iscrowd, many objects in one mask; dropped
    boxes              only a box: its pixels are the mask
    duplicated_ids     a repeated id: "7" becomes "7#2"
    void               value 255 of an id map with a palette, the border in PASCAL VOC; dropped
    exif_rotated        the masks refer to the photo after EXIF rotation
Source of the formats: facebookresearch/segment-anything README and scripts/amg.py; cocodataset.org, "Data format";
cocodataset/panopticapi panopticapi/utils.py:rgb2id.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ureca.corpus.images import ImageSizes, opened_image
from ureca.errors import EmptyMaskError, InputError, MaskError, MaskSizeError
from ureca.regions.rle import Rle, Size, box_to_rle, check_rle, encode_mask, polygon_to_rle
from ureca.regions.tree import Mask

MAX_REGIONS_PER_MAP = 65_535
_VOID = 255


def annotations_of(record: Any, *, where: str) -> tuple[list[Mapping[str, Any]], Size | None]:
    """Return a record's annotations, and the image's (height, width) if the record has it.

    A bare list of annotations, the output of Segment Anything's automatic mode, is a record too.

    Raises:
        InputError: another form.
    """
    try:
        annotations = record if isinstance(record, list) else record["annotations"]
        image = {} if isinstance(record, list) else record["image"]
        size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
        if not all(isinstance(item, dict) for item in annotations):
            raise TypeError("an annotation is not an object")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: not in SA-1B's format ({type(error).__name__}: {error}). Use "
            '{"image": {"height", "width", …}, "annotations": [{"id", "segmentation", …}, …]}.'
        ) from error
    return annotations, size


def frame_of(
    annotations: Sequence[Mapping[str, Any]], size: Size | None, sizes: ImageSizes, *, where: str
) -> Size | None:
    """Return the (height, width) that the masks refer to: that of their RLEs, or else the record's.

    Raises:
        MaskSizeError: the RLEs match neither the stored nor the rotated image.
    """
    rle_sizes: dict[tuple[int, ...], str] = {}
    for index, item in enumerate(annotations):
        rle = item.get("segmentation")
        if isinstance(rle, dict) and isinstance(rle.get("size"), (list, tuple)) and len(rle["size"]) == 2:
            rle_sizes.setdefault(tuple(rle["size"]), str(item.get("id", index)))
    if not rle_sizes:
        return size
    for each in sizes:
        if each in rle_sizes:
            return each
    found, region_id = next(iter(rle_sizes.items()))
    raise MaskSizeError(
        f"{where}: region {region_id!r} has an RLE of size {list(found)}, its image is {list(sizes.stored)} "
        "(height, width). Encode the masks at the image's size."
    )


def masks_of_annotations(
    annotations: Sequence[Mapping[str, Any]], size: Size, *, where: str, notes: Counter[str]
) -> list[Mask]:
    """Return the checked masks of an image of `size` (height, width); repairs are counted in `notes`.

    Raises:
        MaskSizeError: an RLE of another size.
        MaskError: an unknown or damaged segmentation.
    """
    found: list[tuple[str, Rle]] = []
    for index, item in enumerate(annotations):
        region_id = str(item.get("id", index))
        if item.get("iscrowd"):
            notes["crowds"] += 1
            continue
        segmentation = item.get("segmentation")
        if not segmentation and item.get("bbox"):
            notes["boxes"] += 1
        try:
            rle = _segmentation(segmentation, item.get("bbox"), size, where=f"{where}: region {region_id!r}")
        except EmptyMaskError:
            notes["empty_masks"] += 1
            continue
        found.append((region_id, rle))
    return _with_unique_ids(found, notes)


def _segmentation(segmentation: Any, bbox: Any, size: Size, *, where: str) -> Rle:
    if isinstance(segmentation, dict):
        return check_rle(segmentation, size, where=where)
    try:
        if isinstance(segmentation, (list, tuple)) and segmentation:
            return polygon_to_rle(segmentation, size)
        if isinstance(bbox, (list, tuple)) and len(bbox) == 4:
            x, y, width, height = (float(value) for value in bbox)
            return box_to_rle((x, y, x + width, y + height), size)
    except EmptyMaskError:
        raise
    except (MaskError, TypeError, ValueError) as error:
        raise MaskError(f"{where}: {error}") from error
    raise MaskError(f"{where} has neither a segmentation nor a bbox. Add an RLE, polygons, or x, y, width, height.")


def masks_of_id_map(
    ids: np.ndarray, *, wanted: Sequence[str] | None, has_palette: bool, where: str, notes: Counter[str]
) -> list[Mask]:
    """Return one mask per nonzero value of an id map, int64 (H, W); only `wanted` values, if given.

    Works on the runs of all regions at once: 2,000 regions are as fast as a few.

    Raises:
        MaskError: too many different values; the file is a photo.
    """
    height, width = ids.shape
    flat = ids.ravel(order="F")  # runs are column-major
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    lengths = np.diff(np.concatenate((starts, [flat.size])))
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(values[order])) + 1))
    if len(firsts) > MAX_REGIONS_PER_MAP:
        raise MaskError(
            f"{where}: {len(firsts)} different values: this is a picture, not an id map. Use a PNG with one value per "
            "region, or rename it so that it does not belong to a photo."
        )
    runs_of = {str(values[runs[0]]): runs for runs in np.split(order, firsts[1:])}
    runs_of.pop("0", None)
    if has_palette and wanted is None and runs_of.pop(str(_VOID), None) is not None:
        notes["void"] += 1
    if wanted is not None:
        notes["empty_masks"] += sum(region_id not in runs_of for region_id in wanted)
    chosen = runs_of if wanted is None else [region_id for region_id in dict.fromkeys(wanted) if region_id in runs_of]
    masks = []
    for region_id in chosen:
        runs = runs_of[region_id]
        # background before each run, then the run: COCO's order
        ends = starts[runs] + lengths[runs]
        gaps = starts[runs] - np.concatenate(([0], ends[:-1]))
        counts = np.column_stack((gaps, lengths[runs])).ravel().tolist()
        if ends[-1] < flat.size:
            counts.append(flat.size - int(ends[-1]))
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        masks.append(Mask(region_id, {"size": [height, width], "counts": rle["counts"].decode("ascii")}))
    return masks


def read_id_map(data: bytes, *, where: str, max_pixels: int) -> tuple[np.ndarray, bool]:
    """Read an id map as int64 (H, W); also return whether it has a palette.

    Raises:
        ImageError: not an image, or too large.
    """
    with opened_image(data, where, max_pixels) as image:
        if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
            return np.asarray(image).astype(np.int64), image.mode == "P"
        colors = np.asarray(image.convert("RGB")).astype(np.int64)
        return colors @ np.array([1, 256, 65536]), False


def masks_of_pngs(
    files: Sequence[tuple[str, str, bytes]], size: Size, *, max_pixels: int, notes: Counter[str]
) -> list[Mask]:
    """Return one mask per file (region id, path, content), for an image of `size` (height, width).

    Raises:
        ImageError: a file is not an image.
        MaskSizeError: a mask's size differs from the image's.
    """
    found: list[tuple[str, Rle]] = []
    for region_id, where, data in files:
        with opened_image(data, where, max_pixels) as image:
            check_png_size((image.height, image.width), size, where=where)
            if image.has_transparency_data and image.mode != "P":
                shades = np.asarray(image.convert("RGBA"))
                is_cutout = bool((shades[..., 3] < 255).any())
                shades = shades[..., 3] if is_cutout else shades[..., :3].max(axis=2)
            elif image.mode.startswith("I"):
                shades = np.asarray(image)
            elif image.mode == "P":
                shades = np.asarray(image)  # palette indices: 0 is the background
            else:
                shades = np.asarray(image.convert("RGB")).max(axis=2)
        # Edges may be smoothed; a mask of zeros and ones has none.
        mask = shades > (127 if shades.dtype == np.uint8 and shades.max(initial=0) > 127 else 0)
        if not mask.any():
            notes["empty_masks"] += 1
            continue
        found.append((region_id, encode_mask(mask)))
    return _with_unique_ids(found, notes)


def check_png_size(found: Size, size: Size, *, where: str) -> None:
    """Raise MaskSizeError unless a PNG's (height, width) is its image's."""
    if found != size:
        raise MaskSizeError(
            f"{where}: a mask of {list(found)} (height, width), its image is {list(size)}. "
            "Save the mask at the image's size."
        )


def _with_unique_ids(found: Sequence[tuple[str, Rle]], notes: Counter[str]) -> list[Mask]:
    """Make ids unique: a repeated id gets the next free number."""
    taken = {region_id for region_id, _ in found}
    seen: set[str] = set()
    masks = []
    for region_id, rle in found:
        unique, number = region_id, 2
        if region_id in seen:
            notes["duplicated_ids"] += 1
            while (unique := f"{region_id}#{number}") in taken:
                number += 1
            taken.add(unique)
        seen.add(unique)
        masks.append(Mask(unique, rle))
    return masks
