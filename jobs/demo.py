#!/usr/bin/env python
"""Run the whole system on one machine without a GPU: label, train, evaluate, serve, report.

    python jobs/demo.py            (`make demo`; running the same command again resumes)

Synthetic scenes and six real photos become a labeled region table; stages 1 and 2 train nano's mask encoder and LoRA on
it; the trained captioner, its base, a control without a region cue, and the captioner in the package, which had a
longer training of the same kind, are scored on held-out images. The package's captioner is served by Ray Serve and
vLLM, and its answers are compared with transformers'. Writes runs/demo/report.html and runs/demo/summary.json.
"""

import dataclasses
from functools import partial
from pathlib import Path

import bootstrap  # noqa: F401

from ureca.config import load_config
from ureca.corpus.ground_truth import read_ground_truth
from ureca.corpus.split import split_heldout
from ureca.corpus.table import iter_images
from ureca.demo.config import DemoConfig
from ureca.demo.report import SHIPPED, demo_report
from ureca.demo.serve import serve_heldout
from ureca.demo.steps import Steps
from ureca.evaluation.config import EvaluateConfig
from ureca.evaluation.evaluate import evaluate
from ureca.evaluation.variants import trained_variant, variants_of
from ureca.labeling.config import LabelConfig
from ureca.labeling.job import label_corpus
from ureca.model.exporting.export import export
from ureca.model.internvl.presets import packaged_weights
from ureca.nano.benchmark import PROCESSES
from ureca.nano.corpus import make_corpus, tree_exact, unique_share
from ureca.nano.recipe import stage_config
from ureca.runs import Run, run_job
from ureca.training.config import Stage1Config, Stage2Config
from ureca.training.launch import fit

MINUTES = {
    "corpus": 0.2,
    "label": 0.6,
    "stage1": 1.7,
    "stage2": 6.5,
    "control": 5.5,
    "evaluate": 1,
    "serve": 1.5,
    "report": 0.1,
}


def main() -> None:
    config = load_config(DemoConfig, description=__doc__ or "")
    run = Run.start("demo", config, directory=config.output)
    out = run.directory.resolve()
    steps = Steps(MINUTES)

    with steps.step("corpus", "draw scenes, copy the photos"):
        sources = make_corpus(out / "corpus", scenes=config.scenes, seed=config.seed)

    with steps.step("label", "mask trees and four passes of captions, with Ray Data"):
        labeled = label_corpus(LabelConfig(sources=tuple(sources), overwrite=True), out / "labels")
    table = labeled.table
    rows = list(iter_images(table))
    heldout = set(split_heldout([row.image_id for row in rows], config.heldout, config.seed).heldout)
    truth = read_ground_truth(sources[0])

    common = {"table": table, "heldout": config.heldout, "heldout_seed": config.seed, "seed": config.seed}
    with steps.step("stage1", "stage 1: the mask encoder, with Ray Train and DeepSpeed"):
        stage1 = fit(stage_config(Stage1Config, "nano_stage1", epochs=config.stage1_epochs, **common), out / "stage1")
    second = partial(stage_config, Stage2Config, "nano_stage2", epochs=config.stage2_epochs, **common)
    with steps.step("stage2", "stage 2: LoRA on the language model"):
        stage2 = fit(second(init=stage1.model), out / "stage2")
    with steps.step("control", "the control: stage 2 without a region cue"):
        control = fit(second(init="", cue="none"), out / "tuned_none")

    with steps.step("evaluate", "caption the held-out images with every variant, and score them"):
        variants = variants_of(
            EvaluateConfig(table=table, stage1=stage1.model, stage2=stage2.model, tuned_none=control.model)
        )
        variants.append(trained_variant(SHIPPED, str(packaged_weights("captioner"))))
        evaluation = evaluate(
            variants,
            [row for row in rows if row.image_id in heldout],
            output=out / "evaluation",
            truth={i: {r: each["attributes"] for r, each in regions.items()} for i, regions in truth.items()},
            max_new_tokens=config.max_tokens,
            processes=PROCESSES,
            seed=config.seed,
        )

    tested = [row for row in rows if row.image_id in heldout and row.status == "labeled"]
    with steps.step("serve", "serve the package's captioner with vLLM and send requests over HTTP"):
        served = serve_heldout(
            packaged_weights("captioner"), tested, max_tokens=config.max_tokens, request_file=out / "request.json"
        )
        exported = export(stage2.model, out / "export")

    summary = {
        "images": len(rows),
        "regions": sum(len(row.regions) for row in rows),
        "heldout_images": len(tested),
        "tree_exact": tree_exact(rows, truth),
        "labels_unique": unique_share(rows, truth),
        "stage1": dataclasses.asdict(stage1),
        "stage2": dataclasses.asdict(stage2),
        "tuned_none": dataclasses.asdict(control),
        **{name: value for name, value in evaluation.summary().items() if name not in ("images", "regions")},
        "serve": served.summary(),
    }
    with steps.step("report", "write the report"):
        report = demo_report(
            out / "report.html",
            evaluation,
            tested,
            runs={
                "stage 1": out / "stage1",
                "stage 2": out / "stage2",
                "stage 2 without region": out / "tuned_none",
            },
            summary=summary,
        )
    run.finish({**summary, "step_seconds": steps.seconds})
    print(ENDING.format(table=evaluation.table(), report=_shown(report), export=_shown(exported), out=_shown(out)))


def _shown(path: Path) -> str:
    """Return the path relative to the working directory if that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


ENDING = """
{table}
Report:   {report}
Serve:    make serve                      the captioner of the package
          make serve MODEL={export}   the one trained just now
Ask it:   curl -s localhost:8000/v1/captions -H 'Content-Type: application/json' -d @{out}/request.json
A photo:  .venv/bin/ureca caption PHOTO.jpg --model {export}"""


if __name__ == "__main__":
    run_job(main)
