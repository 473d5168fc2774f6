"""Both mask encoders on nano, at equal token count, over several seeds: which captions better after the same training?

    python experiments/compare_encoders.py --table runs/nano_recipe/labels/regions.parquet

    channels              the authors' encoder: linear projection, 0 and 255
    tokens                ours
    tokens, no locations  ours, its codes not started from the base's location tokens

Each goes through stages 1 and 2 with the same settings, steps, images, regions and seeds, and captions the same images,
which training left out. Nano's image is one tile, so each has N = 8 tokens a region. Plans, batches, schedule and model
are those of the training jobs; the steps are taken in this process, for Ray and DeepSpeed would take longer to start
than such a training takes. The trainings are short: they tell encoders apart, not what nano can do. The same command
again resumes. Writes compare_encoders.json and a plot into the run's folder.
"""

import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pycocoevalcap.rouge.rouge import Rouge

from ureca.config import load_config
from ureca.corpus.schema import ImageRow
from ureca.corpus.split import is_heldout
from ureca.corpus.table import iter_images, load_image, write_regions
from ureca.errors import ConfigError
from ureca.evaluation.metrics import tokenize
from ureca.evaluation.predictions import captioned_regions
from ureca.evaluation.uniqueness import RegionCaption, attribute_statistics, picks_own, region_candidates
from ureca.hardware import capture_context
from ureca.model.captioner import Captioner
from ureca.runs import run_job
from ureca.storage.files import read_json, write_json
from ureca.training.config import (
    BatchConfig,
    LoraConfig,
    MaskConfig,
    OptimizerConfig,
    Stage1Config,
    Stage2Config,
    WorkersConfig,
)
from ureca.training.data.loader import BatchLoader
from ureca.training.data.table_index import prepare_index
from ureca.training.deepspeed import learning_rate, refuse_non_finite
from ureca.training.objectives import CaptionLoss
from ureca.training.plan import Plan

ARMS = {
    "channels": MaskConfig(kind="channels"),
    "tokens": MaskConfig(),
    "tokens, no locations": MaskConfig(location_codes=False),
}
METRICS = {"rouge_l": "ROUGE-L", "attribute_accuracy": "attribute accuracy", "uniqueness": "uniqueness"}
COLORS = {"channels": "#b45309", "tokens": "#0f766e", "tokens, no locations": "#64748b"}
HELDOUT = 0.01
"""Share of the table's images that no training sees."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    table: str
    """Region table of drawn scenes, as jobs/nano_recipe.py makes it."""
    output: str = "runs/benchmarks/compare_encoders"
    """Folder of models, captions and scores."""
    arms: tuple[str, ...] = ("channels", "tokens")
    """Which encoders, in quotes where there is a comma: channels, tokens, "tokens, no locations"."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seed of initialization, order of images and sampling."""
    stage1_steps: int = 30
    """Steps of stage 1: one image with up to 24 regions each."""
    stage2_steps: int = 120
    """Steps of stage 2, likewise."""
    train_images: int = 150
    """Images to learn from."""
    images: int = 12
    """Images to caption and to score."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.arms) - set(ARMS)):
            raise ConfigError(f"arms={unknown}: known are {', '.join(ARMS)}.")


def train(plan: Plan) -> list[float]:
    """Train like a single worker, without Ray and DeepSpeed; write the model, return the losses."""
    folder = Path(plan.directory)
    prepare_index(plan.table, folder, plan.processor(), heldout=0.0, heldout_seed=0, has_begun=False)
    captioner, objective = plan.captioner().train(), CaptionLoss()
    learning = [parameter for parameter in captioner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, betas=(0.9, 0.999), eps=1e-8, weight_decay=plan.optimizer.weight_decay)
    captioner.cast_frozen_base(torch.bfloat16)
    batches = BatchLoader(folder, plan.loader_settings(), captioner, rank=0, num_workers=1)
    batches.enable_feature_cache()
    losses = []
    with batches.begin(0) as steps:
        for step in steps:
            torch.manual_seed(plan.seed * 100_003 + step.number)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step.number, batches.num_steps, plan.optimizer)
            with torch.autocast("cpu", torch.bfloat16):
                made = [one.batch for one in batches.microbatches(step)]
                counts = {"tokens": sum(objective.counts(batch)["tokens"] for batch in made)}
                loss = torch.stack([objective.loss(captioner, batch, counts)[0] for batch in made]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(learning, plan.optimizer.clip_norm)
            refuse_non_finite(step.number + 1, loss=float(loss.detach()), grad_norm=float(norm))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(round(float(loss.detach()), 4))
    captioner.save_pretrained(folder / "model")
    return losses


def run_arm(config: CompareConfig, arm: str, seed: int, table: Path, rows: Sequence[ImageRow]) -> dict[str, Any]:
    """Train one encoder with one seed and caption `rows`; what is there already stays."""
    folder = Path(config.output).resolve() / f"seed{seed}" / arm.replace(", ", "_").replace(" ", "_")
    done = folder / "captions.json"
    if done.is_file():
        return dict(read_json(str(done)))
    started = time.process_time()
    common: dict[str, Any] = {
        "table": str(table),
        "heldout": 0.0,
        "seed": seed,
        "batch": BatchConfig(images_per_step=1, regions_per_image=24),
        "workers": WorkersConfig(num_workers=1, bf16=True),
    }
    # Rates of the recipes nano_stage1 and nano_stage2, where a step has four images; ours are smaller and fewer.
    rate1 = OptimizerConfig(learning_rate=1e-3, epochs=config.stage1_steps / config.train_images)
    rate2 = OptimizerConfig(learning_rate=2e-3, epochs=config.stage2_steps / config.train_images)
    first = Stage1Config(**common, mask=ARMS[arm], optimizer=rate1)
    losses = {"stage1": train(Plan.from_config(first, folder / "stage1"))}
    second = Stage2Config(
        **common,
        init=str(folder / "stage1" / "model"),
        tune_mask_encoder=True,
        lora=LoraConfig(dropout=0.0),
        optimizer=rate2,
    )
    losses["stage2"] = train(Plan.from_config(second, folder / "stage2"))
    captioner = Captioner.from_pretrained(folder / "stage2" / "model")
    query = captioner.processor.query("unique")
    captions = []
    for row in rows:
        rles = [row.regions[index].segmentation for index in captioned_regions(row)]
        captions.append(captioner.generate(load_image(row), rles, [query] * len(rles), max_new_tokens=32))
    result = {"losses": losses, "captions": captions, "cpu_seconds": round(time.process_time() - started, 1)}
    write_json(str(done), result)
    print(
        f"compare  seed {seed}, {arm}: loss {np.mean(losses['stage2'][-20:]):.3f}, {result['cpu_seconds']} s",
        flush=True,
    )
    return result


def score(rows: Sequence[ImageRow], captions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of one training, each attribute's accuracy among them."""
    items = []
    for row, of_row in zip(rows, captions, strict=True):
        candidates = region_candidates(load_image(row), row)
        for index, caption in zip(captioned_regions(row), of_row, strict=True):
            items.append(RegionCaption(caption, row.regions[index].caption or "", index, candidates))
    said, meant = (
        dict(enumerate([text] for text in tokenize(texts)))
        for texts in ([item.caption for item in items], [item.reference for item in items])
    )
    accuracy = {name: each.total() for name, each in attribute_statistics(items).items()}
    return {
        "rouge_l": float(Rouge().compute_score(meant, said)[0]),
        "attribute_accuracy": accuracy.pop("all"),
        "uniqueness": float(np.mean([picks_own(item) for item in items])),
        **{name: share for name, share in accuracy.items() if share == share},  # no number: nobody was asked
    }


def plot(scores: dict[str, dict[str, list[float]]]) -> bytes:
    """One panel a metric: a point for each seed, a line at their mean."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for place, (arm, of_seeds) in enumerate(scores.items()):
            axes.plot([place] * len(of_seeds[metric]), of_seeds[metric], "o", color=COLORS[arm], alpha=0.7)
            axes.hlines(np.mean(of_seeds[metric]), place - 0.25, place + 0.25, color=COLORS[arm], linewidth=2)
        axes.set_title(label, fontsize=9)
        axes.set_xticks(range(len(scores)), [arm.replace(", ", ",\n") for arm in scores], fontsize=8)
        axes.set_xlim(-0.6, len(scores) - 0.4)
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def as_table(result: dict[str, Any]) -> str:
    """Means over seeds, with the least and the most."""
    names = {**METRICS, **{name: name for name in next(iter(result["scores"].values())) if name not in METRICS}}
    lines = [f"{'':<22}" + "".join(f"{label:>24}" for label in names.values())]
    for arm, scores in result["scores"].items():
        cells = [f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in (scores[metric] for metric in names)]
        lines.append(f"{arm:<22}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Train, caption, score, print, write."""
    torch.set_num_threads(1)
    config = load_config(CompareConfig, description=__doc__ or "")
    drawn = [row for row in iter_images(config.table) if row.regions and row.regions[0].attributes]
    rows = [row for row in drawn if is_heldout(row.image_id, HELDOUT)][: config.images]
    learned = [row for row in drawn if not is_heldout(row.image_id, HELDOUT)][: config.train_images]
    table = Path(config.output).resolve() / "learned.parquet"
    table.parent.mkdir(parents=True, exist_ok=True)
    if not table.exists():
        write_regions(table, learned)
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in config.arms}
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in config.arms}
    for seed in config.seeds:
        for arm in config.arms:
            run = run_arm(config, arm, seed, table, rows)
            runs[arm].append(run)
            for metric, value in score(rows, run["captions"]).items():
                scores[arm].setdefault(metric, []).append(round(value, 4))
        result = {
            "context": capture_context(),
            "config": asdict(config),
            "images": len(rows),
            "regions": sum(map(len, runs[config.arms[0]][0]["captions"])),
            "seeds": list(config.seeds[: len(runs[config.arms[0]])]),
            "scores": scores,
            "last_losses": {
                arm: [round(float(np.mean(run["losses"]["stage2"][-20:])), 4) for run in of] for arm, of in runs.items()
            },
            "cpu_seconds": {arm: [run["cpu_seconds"] for run in of] for arm, of in runs.items()},
        }
        write_json(str(Path(config.output) / "compare_encoders.json"), result)
        (Path(config.output) / "compare_encoders.png").write_bytes(plot(scores))
        print(as_table(result), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    run_job(main)
