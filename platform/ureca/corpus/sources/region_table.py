"""A region table as a source: its images and regions, to be captioned again.

Data that depends on its captions (flags, uniqueness, ruled-out distractors) is dropped with the captions. A quarantined
row stays a row and is quarantined again, with its original reason.
"""

import json
from collections import Counter
from typing import Any

from ureca.corpus.masks import masks_of_annotations
from ureca.corpus.schema import ImageRow, RegionRow
from ureca.corpus.sources.manifest import ManifestRow, Scratch, SourceSummary
from ureca.corpus.table import iter_images
from ureca.errors import InputError, MaskError
from ureca.regions.tree import Mask


def add_table(path: str, rows: Scratch) -> SourceSummary:
    """Add a row for every image of a region table.

    Raises:
        InputError: not a region table, or one that holds image bytes.
    """
    kinds: Counter[str] = Counter()
    for image in iter_images(path):
        if image.image_bytes is not None:
            raise InputError(
                f"{path}: holds image bytes, but a source names files. Extract them with `ureca convert {path} "
                "FILE.jsonl --format jsonl`, then `ureca convert FILE.jsonl OTHER.parquet --format jsonl` writes a "
                "table that names them."
            )
        kinds[image.status] += 1
        rows.add(
            ManifestRow(
                image_id=image.image_id,
                image_path=image.image_path or path,
                masks_path=path,
                masks_kind="regions",
                record=json.dumps(_record(image)),
            )
        )
    if not kinds:
        raise InputError(f"{path}: a region table without rows. Name the table of a finished job.")
    return SourceSummary(
        source=path,
        kind="region table",
        num_images=kinds.total(),
        num_with_masks=kinds.total() - kinds["quarantined"],
        num_without_masks=kinds["quarantined"],
    )


def check_not_quarantined(record: dict[str, Any], *, where: str) -> None:
    """Raise InputError with the original reason if the image was quarantined in its table."""
    if "error" in record:
        raise InputError(f"{where}: the image is quarantined in its table already ({record['error']}).")


def regions_of_record(record: dict[str, Any], *, where: str) -> tuple[list[Mask], tuple[RegionRow, ...]]:
    """Return the checked masks of a row's regions, and the regions.

    Raises:
        MaskError: a damaged or empty mask.
    """
    regions = tuple(map(RegionRow.from_record, record["regions"]))
    repaired: Counter[str] = Counter()
    annotations = [{"id": each.region_id, "segmentation": each.segmentation} for each in regions]
    masks = masks_of_annotations(annotations, (record["height"], record["width"]), where=where, notes=repaired)
    if repaired:
        raise MaskError(f"{where}: {', '.join(repaired).replace('_', ' ')} among the regions. Label the image again.")
    return masks, regions


def _record(image: ImageRow) -> dict[str, Any]:
    if image.error is not None:
        return {"error": f"{image.error.kind}: {image.error.message}"}
    regions = [region.without_captions().to_record() for region in image.regions]
    return {"height": image.height, "width": image.width, "regions": regions}
