#!/usr/bin/env python
"""Train the nano captioner from its base: label synthetic scenes, train every stage and control for several seeds.

    python jobs/nano_recipe.py --config nano_recipe      (running the same command again resumes)

For each seed: stage 1, stage 2, and the same LoRA training without a region cue (tuned_none) or with the region's box
in words (tuned_box). Several seeds may train in parallel (--seeds_at_once), and on another base (--base, as written by
jobs/pretrain_nano.py). Next: python jobs/nano_benchmark.py --runs=[runs/nano_recipe/seed0,…] scores them, and python
jobs/export.py --model runs/nano_recipe/seed0/stage2/model merges one for serving.
"""

import dataclasses

import bootstrap  # noqa: F401

from ureca.config import load_config
from ureca.labeling.config import LabelConfig
from ureca.labeling.job import label_corpus
from ureca.nano.corpus import make_corpus
from ureca.nano.recipe import HELDOUT_PHOTOS, NanoRecipeConfig, train_seeds
from ureca.runs import Run, run_job


def main() -> None:
    config = load_config(NanoRecipeConfig, description=__doc__ or "")
    run = Run.start("nano_recipe", config, directory=config.output)
    out = run.directory.resolve()

    # Synthetic scenes and photos, labeled by the attributes describer.
    table = config.table
    if not table:
        sources = make_corpus(out / "corpus", scenes=config.scenes, seed=config.corpus_seed, without=HELDOUT_PHOTOS)
        table = label_corpus(LabelConfig(sources=tuple(sources)), out / "labels").table

    # Four trainings per seed. A failure does not end the others; the job fails with its error after them.
    trained, failed = train_seeds(config, table=table, output=out)
    if failed:
        raise next(iter(failed.values()))
    run.finish(
        {
            "table": table,
            **{
                f"seed{seed}": {name: dataclasses.asdict(result) for name, result in results.items()}
                for seed, results in trained.items()
            },
        }
    )


if __name__ == "__main__":
    run_job(main)
