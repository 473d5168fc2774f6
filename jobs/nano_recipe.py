#!/usr/bin/env python
"""Make the nano captioner from its base: label drawn scenes, train every stage and control for several seeds.

    python jobs/nano_recipe.py --config nano_recipe      (the same command again goes on where it was)

For each seed: stage 1, stage 2, and the same LoRA training told nothing of the region (tuned_none) or its box in words
(tuned_box). Several seeds may train side by side (--seeds_at_once), and on a base of your own (--base, as
jobs/pretrain_nano.py writes it). Next: python jobs/nano_benchmark.py --runs=[runs/nano_recipe/seed0,…] scores them, and
python jobs/export.py --model runs/nano_recipe/seed0/stage2/model merges one for serving.
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

    # Drawn scenes and photos, labeled by the attributes describer.
    table = config.table
    if not table:
        sources = make_corpus(out / "corpus", scenes=config.scenes, seed=config.corpus_seed, without=HELDOUT_PHOTOS)
        table = label_corpus(LabelConfig(sources=tuple(sources)), out / "labels").table

    # Four trainings for each seed. One that fails does not end the others; its error does end the job, after them.
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
