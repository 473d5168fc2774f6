"""Learning curve of the nano captioner: scores of a seed's stage 2 at each checkpoint and at its end.

    python experiments/nano_curve.py runs/nano_recipe/seed0        (a seed's folder, as jobs/nano_recipe.py leaves it)

Every checkpoint of stage 2 that is still there becomes a model, a copy of the trained one with that checkpoint's
weights, and captions the first scenes of the frozen benchmark; so does the trained model itself. The recipe keeps them
all (checkpoints.num_to_keep in jobs/configs/nano_stage2.yaml). The learning rate falls along the way: a point is not
what a training of that many steps would reach. Models, captions and scores go to <work>, where the same command again
goes on. Draws the picture of docs/nano.md, prints the points and, as the last line, one JSON; writes
runs/benchmarks/nano_curve.json. Some minutes on two cores.
"""

import argparse
import json
import os
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it ends with this process

from ureca.errors import CheckpointError
from ureca.evaluation.evaluate import Evaluation, evaluate
from ureca.evaluation.labels import METRIC_LABELS
from ureca.evaluation.predictions import Variant
from ureca.hardware import capture_context
from ureca.model.captioner import Captioner
from ureca.nano.benchmark import PROCESSES, label_scenes
from ureca.nano.frozen_scenes import load_benchmark, region_strata
from ureca.runs import run_job
from ureca.storage.files import write_bytes, write_json
from ureca.training.checkpoint.best import make_model_of
from ureca.training.checkpoint.files import CHECKPOINTS_DIRECTORY, MODEL_DIRECTORY, complete_checkpoints
from ureca.training.monitor.metrics import FILE, read_metrics
from ureca.viewer.plots import score_curves

METRICS = ("rouge_l", "attribute_accuracy", "uniqueness")
MAX_NEW_TOKENS = 64


def models(stage2: Path, target: Path) -> dict[int, Path]:
    """Step -> model directory, of the checkpoints that are there and of the end of training.

    Raises:
        CheckpointError: the folder holds no trained model, or no checkpoint but the last.
    """
    trained = stage2 / MODEL_DIRECTORY
    if not trained.is_dir():
        raise CheckpointError(f"{stage2}: no {MODEL_DIRECTORY} in it. Give the folder of a seed that is trained.")
    num_steps = len(read_metrics(stage2 / FILE))
    found: dict[int, Path] = {}
    for checkpoint in complete_checkpoints(str(stage2 / CHECKPOINTS_DIRECTORY)):
        if checkpoint.step == num_steps:
            continue  # the trained model itself
        found[checkpoint.step] = target / checkpoint.name  # unlike that of any other training
        if not found[checkpoint.step].is_dir():
            make_model_of(checkpoint, trained, found[checkpoint.step])
    if not found:
        raise CheckpointError(
            f"{stage2}: no checkpoint is left but the last one, so there is no curve. Train stage 2 with "
            "checkpoints.num_to_keep as large as its checkpoints are many."
        )
    return {**found, num_steps: trained}


def points(evaluation: Evaluation, steps: list[int], regions: list[int]) -> list[dict[str, Any]]:
    """One for each step; `regions`: how many a step had shown, step by step."""
    group = evaluation.main
    return [
        {
            "step": step,
            "regions": regions[step - 1],
            "scores": {
                metric: {end: round(value, 4) for end, value in group.scores[name_of(step)][metric].items()}
                for metric in METRICS
            },
            "attributes": {name: round(value, 4) for name, value in group.attributes[name_of(step)].items()},
        }
        for step in steps
    ]


def name_of(step: int) -> str:
    return f"step {step}"


def picture(found: list[dict[str, Any]]) -> bytes:
    curves = {METRIC_LABELS[name]: {each["regions"] / 1000: each["scores"][name] for each in found} for name in METRICS}
    return score_curves(curves, xlabel="regions seen in stage 2, thousands")


def as_table(found: list[dict[str, Any]]) -> str:
    attributes = list(found[-1]["attributes"])
    lines = [f"{'step':>6}{'regions':>9}" + "".join(f"{name:>20}" for name in (*METRICS, *attributes))]
    for each in found:
        values = [each["scores"][name]["value"] for name in METRICS] + [each["attributes"][name] for name in attributes]
        lines.append(f"{each['step']:>6,}{each['regions']:>9,}" + "".join(f"{value:>20.3f}" for value in values))
    return "\n".join(lines)


def main() -> None:
    """Score, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", help="folder of a trained seed, …/seed0")
    parser.add_argument("--scenes", type=int, default=24, help="that many of the benchmark's scenes")
    parser.add_argument("--picture", default="docs/nano_curve.png", help="file to draw")
    parser.add_argument("--output", default="runs/benchmarks", help="folder for nano_curve.json")
    parser.add_argument("--work", default="runs/nano_curve", help="folder for scenes, models, captions and scores")
    options = parser.parse_args()
    stage2, work = Path(options.seed).resolve() / "stage2", Path(options.work).resolve()

    folders = models(stage2, work / "models")
    scenes = load_benchmark()[: options.scenes]
    labeled = label_scenes(scenes, work / f"benchmark{len(scenes)}", region_strata())
    evaluation = evaluate(
        [
            Variant(name=name_of(step), cue="mask", model=str(model), load=partial(Captioner.from_pretrained, model))
            for step, model in folders.items()
        ],
        labeled.rows,
        output=work,
        truth=labeled.truth,
        max_new_tokens=MAX_NEW_TOKENS,
        processes=PROCESSES,
    )
    shown = list(accumulate(line["num_regions"] for line in read_metrics(stage2 / FILE)))
    found = points(evaluation, list(folders), shown)
    payload = {
        "context": capture_context(),
        "scenes": evaluation.main.num_images,
        "regions": evaluation.main.num_regions,
        "labels_sha256": labeled.labels_sha256,
        "points": found,
    }
    Path(options.output).mkdir(parents=True, exist_ok=True)
    write_json(str(Path(options.output) / "nano_curve.json"), payload)
    write_bytes(options.picture, picture(found))
    print(as_table(found))
    print(json.dumps(payload))


if __name__ == "__main__":
    run_job(main)
