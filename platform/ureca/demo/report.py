"""Build the demo's report page from the results of its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ureca.corpus.schema import ImageRow
from ureca.evaluation.evaluate import Evaluation
from ureca.nano.recipe import learned_images
from ureca.viewer.report import (
    curve_from_metrics,
    report_image,
    write_report,
)
from ureca.viewer.report_data import ReportData, ScoreDifference

NANO_NOTES = (
    "Nano has a few million parameters and was trained on synthetic scenes. It knows colors, textures, shapes, sizes "
    "and places; it does not know objects, materials, people, animals, text, or functions.",
    "It was trained on hardly any real photos: expect more wrong words there than on synthetic scenes.",
    "The labels come from the attributes describer, which measures pixels and names no objects either. Scores show "
    "how well the captioner learned to describe regions that way, not how well it describes the world.",
)

SHIPPED = "shipped"
"""Name of the variant that is the captioner in the package."""
CREDITS = {
    "china": "Photo: danielbuechele, CC BY 2.0, recompressed",
    "flower": "Photo: vultilion, CC BY 2.0, recompressed",
    "astronaut": "Photo: NASA, public domain",
    "rocket": "Photo: SpaceX, public domain",
    "chelsea": "Photo: Stefan van der Walt, CC0",
    "coffee": "Photo: Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0",
}
"""Author and license of the package's photos (corpus/photos/LICENSES.md)."""
WEAK = 0.8
"""Attributes and sizes of regions with a lower accuracy are listed as weaknesses."""


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
        ("mask trees exact on synthetic scenes", f"{summary['tree_exact']:.1%}"),
        ("labels unique in their image", f"{summary['labels_unique']:.1%}"),
        ("regions captioned over HTTP", f"{served['requests']:,}"),
        ("of these equal to transformers", f"{served['equal_to_transformers']:,}"),
        ("served regions/s", f"{served['regions_per_second']:.1f}"),
    ]
    data = ReportData(
        title="URECA on Ray: demo",
        intro=(
            "The captions are those of the nano captioner in the package, served by Ray Serve and vLLM. Its scores "
            "are shown next to those of this run's short training: synthetic scenes and photos labeled by the "
            f"attributes describer, nano's base trained on them in two stages. {who_saw(rows)}"
        ),
        scores=evaluation.scores,
        ceiling=evaluation.main.ceiling,
        accuracy=evaluation.main.attributes_by_size.get(SHIPPED),
        strata={
            name: {value: _values(of["regions"], of["scores"][SHIPPED]) for value, of in values.items()}
            for name, values in evaluation.main.strata.items()
        },
        differences=[ScoreDifference(**each) for each in evaluation.main.differences],
        curves=[curve_from_metrics(run / "metrics.jsonl", label) for label, run in runs.items()],
        facts=facts,
        images=images,
        notes=[*NANO_NOTES, *unknown(evaluation)],
    )
    return write_report(path, data)


def who_saw(rows: Sequence[ImageRow]) -> str:
    """Return which of the two trainings used the held-out images: the split holds them out only from this run's."""
    if learned_images().intersection(row.image_id for row in rows):
        return (
            "The demo's training did not use the images below; the captioner in the package was trained on some of "
            "them."
        )
    return "Neither training used the images below."


def unknown(evaluation: Evaluation) -> list[str]:
    """Return one sentence per weakness of the captioner in the package, by its scores here."""
    group = evaluation.main
    sentences = []
    attributes = {name: value for name, value in group.attributes[SHIPPED].items() if value < WEAK}
    if attributes:
        sentences.append(
            f"Attributes that it often gets wrong on held-out synthetic scenes: {_shares(attributes)} right."
        )
    sizes = {size: of["all"] for size, of in group.attributes_by_size.get(SHIPPED, {}).items() if of["all"] < WEAK}
    if sizes:
        sentences.append(f"Sizes of regions that it often gets wrong: {_shares(sizes)} of their attributes right.")
    unique = group.scores[SHIPPED]["uniqueness"]["value"]
    sentences.append(
        f"{1 - unique:.0%} of its captions fit another region of the scene as well or better, of the labels "
        f"{1 - group.ceiling['uniqueness']['value']:.0%}."
    )
    photos = evaluation.groups.get("photo")
    if photos and photos is not group:
        unique = photos.scores[SHIPPED]["uniqueness"]["value"]
        sentences.append(
            f"On the held-out photos {1 - unique:.0%} of its captions fit another region as well or better "
            f"({photos.num_regions} regions, of the labels {1 - photos.ceiling['uniqueness']['value']:.0%})."
        )
    return sentences


def _shares(values: Mapping[str, float]) -> str:
    """Return "texture 0.55, place in parent 0.71", the weakest first."""
    weakest_first = sorted(values.items(), key=lambda item: item[1])
    return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in weakest_first)


def _values(regions: int, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {"regions": regions, **{metric: each["value"] for metric, each in scores.items()}}
