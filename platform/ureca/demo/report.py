"""The demo's report page from what its steps left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ureca.corpus import ImageRow
from ureca.evaluation.evaluate import Evaluation
from ureca.viewer.report import (
    Difference,
    ReportData,
    curve_from_metrics,
    report_image,
    write_report,
)

CREDITS = {
    "china": "Photo: danielbuechele, CC BY 2.0, recompressed",
    "flower": "Photo: vultilion, CC BY 2.0, recompressed",
    "astronaut": "Photo: NASA, public domain",
    "rocket": "Photo: SpaceX, public domain",
    "chelsea": "Photo: Stefan van der Walt, CC0",
    "coffee": "Photo: Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0",
}
"""Author and license of the package's photos (corpus/photos/LICENSES.md)."""


def demo_report(
    path: Path,
    evaluation: Evaluation,
    rows: Sequence[ImageRow],
    *,
    runs: Mapping[str, Path],
    summary: Mapping[str, Any],
) -> Path:
    """Write one self-contained HTML page. `rows`: the held-out images; `runs`: label -> run folder, for curves."""
    images = []
    for row in rows:
        photo = row.image_id in CREDITS
        images.append(
            report_image(
                row,
                kind="photo" if photo else "drawn",
                captions=evaluation.captions_of(row.image_id),
                picks_own=evaluation.picks_own_of(row.image_id),
                title=row.image_id,
                credit=CREDITS.get(row.image_id, ""),
            )
        )
    served = summary["serve"]
    facts = [
        ("images", f"{summary['images']:,}"),
        ("regions", f"{summary['regions']:,}"),
        ("mask trees exact on drawn scenes", f"{summary['tree_exact']:.1%}"),
        ("labels unique in their image", f"{summary['labels_unique']:.1%}"),
        ("regions captioned over HTTP", f"{served['requests']:,}"),
        ("of these equal to transformers", f"{served['equal_to_transformers']:,}"),
        ("served regions/s", f"{served['regions_per_second']:.1f}"),
    ]
    data = ReportData(
        title="URECA on Ray: the main job",
        intro=(
            "Drawn scenes and six photos were labeled by the attributes describer; nano's base was trained on them in "
            "two stages; everything below is from images that training did not see."
        ),
        scores=evaluation.scores,
        ceiling=evaluation.main.ceiling,
        differences=[Difference(**each) for each in evaluation.main.differences],
        curves=[curve_from_metrics(run / "metrics.jsonl", label) for label, run in runs.items()],
        facts=facts,
        images=images,
    )
    return write_report(path, data)
