"""Score nano on its frozen benchmark: the weights in the package, or the seeds that a recipe trained.

    scene seeds, versions and digests      ureca.nano.frozen_scenes
    labels                                 the attributes describer, by the labeling job's code
    captions and scores                    ureca.evaluation

The weights in the package are from one seed; the scores of all seeds are recorded next to them (`seeds.json`), written
by a run over the recipe's folders.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca.corpus.ground_truth import read_ground_truth
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import iter_images
from ureca.errors import ConfigError
from ureca.evaluation.aggregate import ScoredGroup, Strata
from ureca.evaluation.evaluate import Evaluation
from ureca.evaluation.predictions import Variant
from ureca.evaluation.uniqueness import Truth
from ureca.evaluation.variants import base_variants, trained_variant
from ureca.labeling.config import LabelConfig
from ureca.labeling.job import label_corpus
from ureca.model.captioner import CaptionerConfig
from ureca.model.internvl.presets import packaged_weights
from ureca.nano.scenes.draw import Scene
from ureca.nano.scenes.files import image_id_of, write_scenes
from ureca.storage.files import read_json

METRICS = ("rouge_l", "attribute_accuracy", "uniqueness")
SEEDS_FILE = "seeds.json"
MODELS = {
    "tuned_none": "tuned_none/model",
    "tuned_box": "tuned_box/model",
    "mask_stage1": "stage1/model",
    "mask_stage2": "stage2/model",
}
"""Variant -> folder of its model below the folder of a seed."""
CAPTIONER = "mask_stage2"
UNTRAINED = ("none", "box")
PROCESSES = min(4, os.cpu_count() or 1)
"""Captioning processes: a nano fills one core, and takes half a gigabyte."""


@dataclass(frozen=True, kw_only=True)
class NanoBenchmarkConfig:
    output: str = "runs/nano"
    """Folder of scenes, captions and scores; running again with the same folder resumes."""
    runs: tuple[str, ...] = ()
    """Folders of trained seeds as written by nano_recipe (…/seed0), to score instead of the weights in the package."""
    max_new_tokens: int = 64
    """Maximum caption length in tokens."""


@dataclass(frozen=True)
class Labeled:
    """Synthetic scenes with labels and ground truth."""

    rows: list[ImageRow]
    truth: Mapping[str, Truth]
    strata: Strata

    @property
    def labels_sha256(self) -> str:
        """SHA-256 of all labels: scores against other labels are not comparable."""
        lines = sorted(f"{row.image_id} {each.region_id} {each.caption}" for row in self.rows for each in row.regions)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def label_scenes(scenes: Sequence[Scene], directory: Path, strata: Strata) -> Labeled:
    """Write the scenes below `directory` and label them with the labeling job; existing files are kept."""
    seeds = [scene.seed for scene in scenes]
    folder = directory / "scenes"
    if not (directory / "complete").exists():
        write_scenes(folder, seeds)
        (directory / "complete").touch()
    table = label_corpus(LabelConfig(sources=(str(folder),)), directory / "labels").table
    wanted = {image_id_of(seed) for seed in seeds}
    rows = [row for row in iter_images(table) if row.image_id in wanted]
    truth = {
        image_id: {region_id: each["attributes"] for region_id, each in regions.items()}
        for image_id, regions in read_ground_truth(folder).items()
    }
    return Labeled(rows, truth, strata)


def shipped_variants() -> list[Variant]:
    """Return the base, the captioner and the controls in the package; prints which controls are missing."""
    folders = {name: packaged_weights("controls") / name for name in MODELS}
    folders[CAPTIONER] = packaged_weights("captioner")
    if missing := [name for name, folder in folders.items() if not folder.is_dir()]:
        print(f"nano-benchmark  not part of the package, so not scored: {', '.join(missing)}", file=sys.stderr)
    config = CaptionerConfig.load(folders[CAPTIONER])
    seed = recorded_seeds().get("shipped_seed", 0)
    return [
        *base_variants(config.base, config.tile_limit),
        *(trained_variant(name, str(folder), seed=seed) for name, folder in folders.items() if folder.is_dir()),
    ]


def recipe_variants(runs: Sequence[str]) -> list[Variant]:
    """Return the base, and every model that the folders of trained seeds hold so far.

    Raises:
        ConfigError: a folder is not named after its seed, or a seed occurs twice.
        CheckpointError: a folder holds no finished stage 1.
    """
    seeds: dict[int, Path] = {}
    for run in runs:
        named = re.fullmatch(r"seed(\d+)", Path(run).name)
        if not named or int(named[1]) in seeds:
            raise ConfigError(f"runs={run}: give each seed's folder once, named as nano_recipe names it (seed0, …).")
        seeds[int(named[1])] = Path(run)
    trained = [
        trained_variant(name, str(folder / model), seed=seed)
        for name, model in MODELS.items()
        for seed, folder in seeds.items()
        if (folder / model).is_dir()
    ]
    config = CaptionerConfig.load(next(iter(seeds.values())) / MODELS["mask_stage1"])
    return [*base_variants(config.base, config.tile_limit), *trained]


def recorded_seeds() -> dict[str, Any]:
    """Return the recorded scores of all seeds of the captioner in the package; empty if there are none."""
    path = packaged_weights("captioner") / SEEDS_FILE
    return dict(read_json(str(path))) if path.is_file() else {}


def seeds_record(evaluation: Evaluation, labeled: Labeled) -> dict[str, Any]:
    """Return the content of seeds.json: every seed's scores, their means with intervals and spread, and differences."""
    group = evaluation.main
    return {
        "labels_sha256": labeled.labels_sha256,
        "shipped_seed": min(group.seeds[CAPTIONER]),
        "seeds": _by_seed(group),
        "over_seeds": {
            "scores": _three(group.scores),
            "spread": {name: {metric: _rounded(of[metric]) for metric in METRICS} for name, of in group.spread.items()},
            "differences": _differences(group),
        },
    }


def benchmark_summary(
    evaluation: Evaluation, labeled: Labeled, *, name: str, recorded: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of summary.json. `recorded`: the scores of all seeds, as returned by `seeds_record`.

    Recorded scores against other labels are omitted with a message on stderr.
    """
    group = evaluation.main
    if recorded and recorded["labels_sha256"] != labeled.labels_sha256:
        print("omitting recorded seeds: they were scored against other labels", file=sys.stderr)
        recorded = {}
    mine = _by_seed(group)
    seeds = {each["seed"]: {**each, "scored": "now"} for each in mine}
    for each in recorded.get("seeds", []):
        seeds.setdefault(each["seed"], {**each, "scored": "recorded"})
    return {
        "benchmark": {"name": name, "images": group.num_images, "regions": group.num_regions},
        "labels_sha256": labeled.labels_sha256,
        "scores": _three(group.scores),
        "describer": {metric: round(each["value"], 4) for metric, each in group.ceiling.items()},
        "differences": _differences(group),
        "attributes": _rounded(group.attributes[CAPTIONER]),
        "attributes_by_size": {size: _rounded(of) for size, of in group.attributes_by_size.get(CAPTIONER, {}).items()},
        "strata": {
            stratum: {
                value: {"regions": of["regions"], **_values(of["scores"].get(CAPTIONER, {}))}
                for value, of in values.items()
            }
            for stratum, values in group.strata.items()
        },
        "seeds": [seeds[seed] for seed in sorted(seeds)],
        "over_seeds": recorded.get("over_seeds"),
    }


def _by_seed(group: ScoredGroup) -> list[dict[str, Any]]:
    """Return {"seed", "scores"} of each seed of the captioner, with the controls of that seed and the base."""
    seeds = []
    for seed in sorted(group.seeds[CAPTIONER]):
        scores = {name: of.get(seed, of.get(0) if name in UNTRAINED else None) for name, of in group.seeds.items()}
        seeds.append({"seed": seed, "scores": _three({name: of for name, of in scores.items() if of})})
    return seeds


def _differences(group: ScoredGroup) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for each in group.differences:
        if each["metric"] in METRICS:
            interval = {end: round(each[end], 4) for end in ("value", "low", "high")}
            found.setdefault(f"{each['better']} - {each['worse']}", {})[each["metric"]] = interval
    return found


def _three(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {metric: _rounded(of[metric]) for metric in METRICS if metric in of} for name, of in scores.items()}


def _values(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {metric: round(scores[metric]["value"], 4) for metric in METRICS if metric in scores}


def _rounded(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: round(value, 4) for key, value in values.items()}
    return [round(value, 4) for value in values]
