"""Effect of preference tuning on nano: stage 3 from a stage 2 model, and as many steps of captions alone.

    python experiments/preference.py --table TABLE --stage2 MODEL     (nano_recipe's labels and seed0/stage2/model)

For each seed: stage 3 as jobs/configs/nano_stage3.yaml has it (mask_stage3), and the same without the preference
(mask_longer: beta 0, the same images, regions, captions and steps). The stage 2 model that both start from, and all of
these, are scored on scenes of the frozen benchmark; differences are paired scene by scene, with intervals bootstrapped
over scenes. The same command again resumes. Prints the scores and, as the last line, one JSON; writes
runs/benchmarks/preference.json.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it ends with this process

from ureca.evaluation.evaluate import Evaluation, evaluate
from ureca.evaluation.variants import trained_variant
from ureca.hardware import capture_context
from ureca.nano.benchmark import label_scenes
from ureca.nano.frozen_scenes import load_benchmark, region_strata
from ureca.nano.recipe import stage_config
from ureca.storage.files import write_json
from ureca.training.config import PreferenceConfig, Stage3Config
from ureca.training.launch import fit
from ureca.training.monitor.metrics import FILE, read_metrics

RESULT = Path("runs/benchmarks/preference.json")
METRICS = ("uniqueness", "attribute_accuracy", "rouge_l")
ENDS = 10
"""Steps over which the first and the last figures of a training are averaged."""
MAX_NEW_TOKENS = 64


def train(options: argparse.Namespace, seed: int, directory: Path, *, control: bool) -> dict[str, Any]:
    """Stage 3, or its control, and how its figures went."""
    config: Stage3Config = stage_config(
        Stage3Config,
        "nano_stage3",
        epochs=options.epochs,
        table=str(Path(options.table).resolve()),
        heldout=0.0,
        init=str(Path(options.stage2).resolve()),
        seed=seed,
    )
    config = dataclasses.replace(config, workers=dataclasses.replace(config.workers, num_workers=1))
    if control:
        config = dataclasses.replace(config, preference=PreferenceConfig(beta=0.0))
    result = fit(config, directory)
    lines = read_metrics(directory / FILE)

    def mean(name: str, of: list[dict[str, Any]]) -> float:
        return round(sum(line[name] for line in of) / len(of), 4)

    names = ("preference_loss", "sft_loss", "preference_accuracy", "ranking_accuracy", "margin")
    return {
        "seed": seed,
        "model": result.model,
        "steps": result.steps,
        "pairs": sum(line["num_pairs"] for line in lines),
        "seconds": lines[-1]["seconds"],
        **{name: [mean(name, lines[:ENDS]), mean(name, lines[-ENDS:])] for name in names},
    }


def payload(evaluation: Evaluation, trained: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    group = evaluation.main

    def rounded(values: dict[str, float]) -> dict[str, float]:
        return {end: round(value, 4) for end, value in values.items()}

    return {
        "context": capture_context(),
        "scenes": group.num_images,
        "regions": group.num_regions,
        "trained": trained,
        "scores": {name: {metric: rounded(of[metric]) for metric in METRICS} for name, of in group.scores.items()},
        "seeds": {
            name: {seed: {metric: round(of[metric]["value"], 4) for metric in METRICS} for seed, of in seeds.items()}
            for name, seeds in group.seeds.items()
        },
        "attributes": {name: rounded(of) for name, of in group.attributes.items()},
        "differences": [
            {"metric": each["metric"], "better": each["better"], "worse": each["worse"]}
            | rounded({end: each[end] for end in ("value", "low", "high")})
            for each in group.differences
            if each["metric"] in METRICS
        ],
    }


def main() -> None:
    """Train, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="region table of drawn scenes")
    parser.add_argument("--stage2", required=True, help="model directory of stage 2 to start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--scenes", type=int, default=128, help="that many of the benchmark's scenes")
    parser.add_argument("--epochs", type=float, help="in place of the recipe's")
    parser.add_argument("--output", default="runs/benchmarks/preference")
    options = parser.parse_args()
    output = Path(options.output).resolve()

    trained: dict[str, list[dict[str, Any]]] = {"mask_stage3": [], "mask_longer": []}
    for seed in options.seeds:
        for name, of in trained.items():
            of.append(train(options, seed, output / name / f"seed{seed}", control=name == "mask_longer"))

    labeled = label_scenes(load_benchmark()[: options.scenes], output / "benchmark", region_strata())
    evaluation = evaluate(
        [
            trained_variant("mask_stage2", options.stage2),
            *(trained_variant(name, run["model"], seed=run["seed"]) for name, of in trained.items() for run in of),
        ],
        labeled.rows,
        output=output,
        truth=labeled.truth,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    found = payload(evaluation, trained)
    write_json(str(RESULT), found)
    print(evaluation.table())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
