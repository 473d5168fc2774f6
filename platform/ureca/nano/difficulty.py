"""Difficulty of nano's frozen benchmark: scores of its labels, of an oracle, and of guessing.

    labels            the attributes describer's captions, measured from pixels: the ceiling of a model trained on them
    true_words        the describer's wording with the true words: the cost of measuring
    mask_and_guess    everything that a mask shows (size, shape, place), and always the most common color
    place_and_size    only these two

    python -m ureca.nano.difficulty [FOLDER]       (runs/nano: scenes and labels are kept there; Ray labels them)

writes difficulty.json into the folder and prints the tables of docs/nano_benchmark.md.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ureca.attributes.claims import Claims
from ureca.attributes.wording import describe_claims
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import load_image
from ureca.evaluation.evaluate import score
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.uniqueness import Candidates, region_candidates
from ureca.labeling.describers.attributes import AttributesDescriber
from ureca.labeling.describers.base import DescribeRequest
from ureca.nano.benchmark import Labeled, label_scenes
from ureca.nano.frozen_scenes import NAME, load_benchmark, region_strata
from ureca.storage.files import write_json

ORACLES = ("true_words", "mask_and_guess", "place_and_size")
METRICS = ("rouge_l", "attribute_accuracy", "uniqueness")
STRATUM_METRICS = ("attribute_accuracy", "uniqueness")
PRINTED_STRATA = ("size", "depth", "crowding")
"""Strata whose scores are printed; the file holds all."""


def difficulty(labeled: Labeled) -> dict[str, Any]:
    """Score the labels and the oracles on labeled synthetic scenes, in total and by stratum.

    {"images", "regions", "labels_sha256", "scores": name -> metric -> {"value", "low", "high"}, "attributes": name ->
    attribute -> accuracy, "labels_by_size": size -> attribute -> accuracy, "strata": stratum -> value -> {"regions",
    "scores": name -> metric -> value}}; fractions in 0..1. Labels have no ROUGE-L: they are the references.
    """
    candidates = {
        row.image_id: region_candidates(load_image(row), row, labeled.truth[row.image_id]) for row in labeled.rows
    }
    colors = Counter(region.color for each in candidates.values() for region in each.attributes)
    commonest = min(colors, key=lambda name: (-colors[name], name))
    predictions = []
    for row in labeled.rows:
        image = load_image(row)
        for index, region in enumerate(row.regions):
            captions = oracle_captions(image, row, candidates[row.image_id], index, commonest)
            predictions += [
                Prediction(
                    image_id=row.image_id,
                    region_id=region.region_id,
                    variant=name,
                    caption=caption,
                    reference=region.caption or "",
                )
                for name, caption in captions.items()
            ]
    groups, _ = score(labeled.rows, candidates, predictions, strata=labeled.strata)
    group = groups["drawn"]
    return {
        "images": group.num_images,
        "regions": group.num_regions,
        "labels_sha256": labeled.labels_sha256,
        "commonest_color": commonest,
        "scores": {name: _only(METRICS, of) for name, of in {"labels": group.ceiling, **group.scores}.items()},
        "attributes": group.attributes,
        "labels_by_size": group.attributes_by_size["labels"],
        "strata": {
            stratum: {
                value: {
                    "regions": of["regions"],
                    "scores": {
                        name: {metric: of["scores"][name][metric]["value"] for metric in STRATUM_METRICS}
                        for name in ("labels", *ORACLES)
                    },
                }
                for value, of in values.items()
            }
            for stratum, values in group.strata.items()
        },
    }


def oracle_captions(
    image: np.ndarray, row: ImageRow, candidates: Candidates, index: int, commonest_color: str
) -> dict[str, str]:
    """Return the caption of each of ORACLES for region `index`; `candidates` hold the true words."""
    regions = candidates.attributes
    region = regions[index]
    request = DescribeRequest(
        pass_name="unique",
        image=image,
        segmentations=tuple(each.segmentation for each in row.regions),
        parents=tuple(each.parent for each in row.regions),
        index=index,
        attributes=regions,
    )
    true_words = asyncio.run(AttributesDescriber().describe(request)).text
    place_and_size = Claims(noun=region.noun, size=region.size, place=region.place)
    guess = replace(place_and_size, shape=region.shape, color=commonest_color)
    if region.parent >= 0:
        parent = Claims(noun=regions[region.parent].noun, color=commonest_color)
        guess = replace(guess, place_in_parent=region.place_in_parent, parent=parent)
    captions = (true_words, describe_claims(guess, article="the"), describe_claims(place_and_size, article="the"))
    return dict(zip(ORACLES, captions, strict=True))


def _only(names: tuple[str, ...], scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: scores[name] for name in names if name in scores}


def as_tables(found: Mapping[str, Any]) -> str:
    """Return the scores as tables in Markdown."""
    lines = ["| | ROUGE-L | attribute accuracy | uniqueness |", "|---|---|---|---|"]
    for name, scores in found["scores"].items():
        cells = [
            "{value:.3f} [{low:.3f}, {high:.3f}]".format(**scores[metric]) if metric in scores else ""
            for metric in METRICS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    attributes = list(found["attributes"]["labels"])
    lines += ["", f"| | {' | '.join(attributes)} |", "|---" * (len(attributes) + 1) + "|"]
    for name, of in found["attributes"].items():
        lines.append(f"| {name} | {' | '.join(f'{of[key]:.3f}' if key in of else '' for key in attributes)} |")
    lines += ["", "| stratum | regions |", "|---|---|"]
    for stratum, values in found["strata"].items():
        counts = ", ".join(f"{value} {of['regions']:,}" for value, of in values.items())
        lines.append(f"| {stratum} | {counts} |")
    names = list(found["scores"])
    lines += ["", f"| attribute accuracy / uniqueness | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for stratum in PRINTED_STRATA:
        for value, of in found["strata"].get(stratum, {}).items():
            cells = [" / ".join(f"{of['scores'][name][metric]:.3f}" for metric in STRATUM_METRICS) for name in names]
            lines.append(f"| {stratum}: {value} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    labeled = label_scenes(load_benchmark(), folder / "benchmark", region_strata())
    found = {"benchmark": NAME, **difficulty(labeled)}
    write_json(str(folder / "difficulty.json"), found)
    print(as_tables(found))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/nano"))
