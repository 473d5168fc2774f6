#!/usr/bin/env python
"""Score captioners on held-out images, with their base and a control without a region cue.

    python jobs/evaluate.py --config evaluate_nano        (running the same command again resumes)

Reads a region table and selects its held-out images. Captions every labeled region with each variant that has a model,
and writes into runs/evaluate: predictions.jsonl (every caption with its reference), scores.json (all scores with their
intervals), summary.json. METEOR is METEOR 1.5 (Java).
"""

import bootstrap  # noqa: F401

from ureca.config import load_config
from ureca.corpus.ground_truth import read_ground_truth
from ureca.corpus.split import split_heldout
from ureca.corpus.table import iter_images
from ureca.evaluation.config import EvaluateConfig
from ureca.runs import Run, run_job


def main() -> None:
    config = load_config(EvaluateConfig, description=__doc__)
    from ureca.evaluation.evaluate import evaluate  # slow imports, after the options are parsed
    from ureca.evaluation.variants import variants_of

    run = Run.start("evaluate", config, directory=config.run_directory or None)

    # Held-out images, never used in training.
    rows = {row.image_id: row for row in iter_images(config.table)}
    heldout = split_heldout(rows, config.heldout, config.heldout_seed).heldout
    truth = {
        image_id: {region_id: region["attributes"] for region_id, region in regions.items()}
        for image_id, regions in (read_ground_truth(config.truth) if config.truth else {}).items()
    }

    # Caption their regions with every variant, and score the captions.
    evaluation = evaluate(
        variants_of(config),
        [rows[image_id] for image_id in heldout],
        output=run.directory,
        truth=truth,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    print(evaluation.table())
    run.finish(evaluation.summary())


if __name__ == "__main__":
    run_job(main)
