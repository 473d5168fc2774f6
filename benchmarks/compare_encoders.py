"""Both mask encoders on nano, at equal token count, over several seeds: which captions better after the same training?

    python benchmarks/compare_encoders.py --table runs/nano_recipe/labels/regions.parquet

    channels              the authors' encoder: linear projection, 0 and 255
    tokens                ours
    tokens, no locations  ours, its codes not started from the base's location tokens

Each goes through stages 1 and 2 by the jobs' own code, with the same settings, steps, images and seeds, and captions
the same scenes of the frozen benchmark. Nano's image is one tile, so each has N = 8 tokens a region. The trainings are
short: they tell the encoders apart, not what nano can do. Goes on where it was; writes compare_encoders.json and a plot
into the folder of the run.
"""

import dataclasses
import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ureca.config import load_config
from ureca.corpus import read_regions
from ureca.demo.benchmark import label_scenes
from ureca.demo.recipe import stage_config
from ureca.errors import ConfigError
from ureca.evaluation.evaluate import evaluate
from ureca.evaluation.predictions import Variant
from ureca.io import write_json
from ureca.machine import capture_context
from ureca.model import Captioner
from ureca.runs import run_job
from ureca.scenes.benchmark import load_benchmark, region_strata
from ureca.training import Stage1Config, Stage2Config, fit

ARMS: dict[str, dict[str, Any]] = {
    "channels": {"kind": "channels"},
    "tokens": {"kind": "tokens"},
    "tokens, no locations": {"kind": "tokens", "location_codes": False},
}
METRICS = {
    "rouge_l": "ROUGE-L",
    "attribute_accuracy": "attribute accuracy",
    "uniqueness": "uniqueness",
}
COLORS = {"channels": "#b45309", "tokens": "#0f766e", "tokens, no locations": "#64748b"}


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    table: str
    """Region table of drawn scenes to learn from, as jobs/nano_recipe.py makes it."""
    output: str = "runs/benchmarks/compare_encoders"
    """Folder of models, captions and scores."""
    arms: tuple[str, ...] = ("channels", "tokens")
    """Which encoders."""
    seeds: tuple[int, ...] = (0, 1, 2)
    stage1_steps: int = 60
    stage2_steps: int = 200
    """Of one image with up to 24 regions each."""
    scenes: int = 24
    """Of the frozen benchmark, to score on."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.arms) - set(ARMS)):
            raise ConfigError(f"arms={unknown}: known are {', '.join(ARMS)}.")


def train(config: CompareConfig, arm: str, seed: int, num_images: int) -> dict[str, Any]:
    """Both stages of one encoder and seed; what is there already stays."""
    folder = Path(config.output) / f"seed{seed}" / arm.replace(", ", "_").replace(" ", "_")
    batch = {"images_per_step": 1, "images_per_device": 1, "regions_per_image": 24}
    workers = {"num_workers": 1, "threads": 1, "bf16": True}
    common: dict[str, Any] = {"table": config.table, "heldout": 0.0, "seed": seed, "batch": batch, "workers": workers}
    first = fit(
        stage_config(Stage1Config, "nano_stage1", epochs=config.stage1_steps / num_images, mask=ARMS[arm], **common),
        folder / "stage1",
    )
    second = fit(
        stage_config(
            Stage2Config,
            "nano_stage2",
            init=first.model,
            tune_mask_encoder=True,
            optimizer={"learning_rate": 2e-3, "epochs": config.stage2_steps / num_images},
            **common,
        ),
        folder / "stage2",
    )
    return {"stage1": dataclasses.asdict(first), "stage2": dataclasses.asdict(second)}


def plot(seeds: dict[str, dict[str, list[float]]]) -> bytes:
    """One panel a metric: a point for each seed, a line at their mean."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for place, (arm, scores) in enumerate(seeds.items()):
            axes.plot([place] * len(scores[metric]), scores[metric], "o", color=COLORS[arm], alpha=0.7)
            axes.hlines(np.mean(scores[metric]), place - 0.25, place + 0.25, color=COLORS[arm], linewidth=2)
        axes.set_title(label, fontsize=9)
        axes.set_xticks(range(len(seeds)), [arm.replace(", ", ",\n") for arm in seeds], fontsize=8)
        axes.set_xlim(-0.6, len(seeds) - 0.4)
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def table(result: dict[str, Any]) -> str:
    """Means over seeds with the least and the most."""
    lines = [f"{'':<22}" + "".join(f"{label:>26}" for label in METRICS.values())]
    for arm, scores in result["seeds"].items():
        cells = [f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in (scores[metric] for metric in METRICS)]
        lines.append(f"{arm:<22}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Train, score, print, write."""
    config = load_config(CompareConfig, description=__doc__ or "")
    out = Path(config.output).resolve()
    out.mkdir(parents=True, exist_ok=True)
    num_images = sum(status == "labeled" for status in read_regions(config.table)["status"].to_pylist())
    trained: dict[str, dict[int, Any]] = {arm: {} for arm in config.arms}
    for seed in config.seeds:
        for arm in config.arms:
            trained[arm][seed] = train(config, arm, seed, num_images)
    labeled = label_scenes(load_benchmark()[: config.scenes], out / "benchmark", region_strata())
    variants = [
        Variant(
            name=arm,
            cue="mask",
            model=of["stage2"]["model"],
            load=partial(Captioner.from_pretrained, of["stage2"]["model"]),
            seed=seed,
        )
        for arm, seeds in trained.items()
        for seed, of in seeds.items()
    ]
    evaluation = evaluate(
        variants, labeled.rows, output=out, truth=labeled.truth, strata=labeled.strata, max_new_tokens=40
    )
    group = evaluation.main
    result = {
        "context": capture_context(),
        "config": dataclasses.asdict(config),
        "scenes": group.num_images,
        "regions": group.num_regions,
        "seeds": {
            arm: {metric: [round(group.seeds[arm][s][metric]["value"], 4) for s in config.seeds] for metric in METRICS}
            for arm in config.arms
        },
        "attributes": {arm: {k: round(v, 4) for k, v in group.attributes[arm].items()} for arm in config.arms},
        "by_size": {arm: group.attributes_by_size.get(arm, {}) for arm in config.arms},
        "training": trained,
    }
    write_json(str(out / "compare_encoders.json"), result)
    (out / "compare_encoders.png").write_bytes(plot(result["seeds"]))
    print(table(result))
    print(json.dumps({key: result[key] for key in ("scenes", "regions", "seeds", "attributes")}))


if __name__ == "__main__":
    run_job(main)
