"""One self-contained HTML page: scores, training curves, every held-out image with its regions and captions.

Pictures are data URLs, style and script are embedded, nothing is fetched. Hovering over a row highlights its region in
the picture; without scripts, a click on its number does.

    write_report("runs/demo/report.html", ReportData(title=..., scores=..., images=[report_image(row, ...)]))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import load_image
from ureca.viewer.plots import Curve
from ureca.viewer.report_data import (
    Kind,
    ReportData,
    ReportImage,
    ReportRegion,
)
from ureca.viewer.report_html import report_page


def report_image(
    row: ImageRow,
    *,
    kind: Kind,
    captions: Mapping[str, Mapping[str, str]] | None = None,
    picks_own: Mapping[str, Mapping[str, bool]] | None = None,
    title: str = "",
    credit: str = "",
) -> ReportImage:
    """Convert a row of the region table. `captions` and `picks_own` map variant -> region id -> value.

    Raises:
        ImageError: the row's image can't be read.
    """
    captions, picks_own = captions or {}, picks_own or {}
    regions = tuple(
        ReportRegion(
            region_id=region.region_id,
            parent=region.parent,
            segmentation=region.segmentation,
            short_caption=region.short_caption,
            long_caption=region.long_caption,
            caption=region.caption,
            captions={name: said[region.region_id] for name, said in captions.items() if region.region_id in said},
            picks_own={name: own[region.region_id] for name, own in picks_own.items() if region.region_id in own},
            flags=region.flags,
        )
        for region in row.regions
    )
    return ReportImage(
        image_id=row.image_id, kind=kind, image=load_image(row), regions=regions, title=title, credit=credit
    )


def curve_from_metrics(path: str | Path, label: str, *, step: str = "step", loss: str = "loss") -> Curve:
    """Read loss over steps from a run's metrics.jsonl; lines without both keys are skipped."""
    steps, losses = [], []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if step in record and loss in record:
            steps.append(float(record[step]))
            losses.append(float(record[loss]))
    return Curve(label, steps, losses)


def write_report(path: str | Path, data: ReportData) -> Path:
    """Write the page; return its path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(report_page(data), encoding="utf-8")
    return target
