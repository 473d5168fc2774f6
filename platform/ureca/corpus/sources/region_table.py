"""A region table as a source: its images with the regions that it has, to be captioned anew.

What its captions said of them (flags, uniqueness, what told them apart) is left behind with the captions. A row that
was set aside there is a row here too, and is set aside again, with the reason of then.
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
        InputError: no region table, or one that holds its images in itself.
    """
    kinds: Counter[str] = Counter()
    for image in iter_images(path):
        if image.image_bytes is not None:
            raise InputError(
                f"{path}: holds its images in itself, and a source names files. `ureca convert {path} FILE.jsonl "
                "--format jsonl` writes them out, and `ureca convert FILE.jsonl OTHER.parquet --format jsonl` makes a "
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
        raise InputError(f"{path}: a region table without a row. Give the table of a job that has finished.")
    return SourceSummary(
        source=path,
        kind="region table",
        num_images=kinds.total(),
        num_with_masks=kinds.total() - kinds["quarantined"],
        num_without_masks=kinds["quarantined"],
    )


def check_not_quarantined(record: dict[str, Any], *, where: str) -> None:
    """Raises InputError with the reason if the image was set aside in its table."""
    if "error" in record:
        raise InputError(f"{where}: the image was set aside there already ({record['error']}).")


def regions_of_record(record: dict[str, Any], *, where: str) -> tuple[list[Mask], tuple[RegionRow, ...]]:
    """The masks of a row's regions, checked, and the regions.

    Raises:
        MaskError: a mask that is damaged, or has no pixel.
    """
    regions = tuple(map(RegionRow.from_record, record["regions"]))
    mended: Counter[str] = Counter()
    annotations = [{"id": each.region_id, "segmentation": each.segmentation} for each in regions]
    masks = masks_of_annotations(annotations, (record["height"], record["width"]), where=where, notes=mended)
    if mended:
        raise MaskError(f"{where}: {', '.join(mended).replace('_', ' ')} among the regions. Label the image again.")
    return masks, regions


def _record(image: ImageRow) -> dict[str, Any]:
    if image.error is not None:
        return {"error": f"{image.error.kind}: {image.error.message}"}
    regions = [region.without_captions().to_record() for region in image.regions]
    return {"height": image.height, "width": image.width, "regions": regions}
