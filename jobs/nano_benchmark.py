#!/usr/bin/env python
"""Score the nano captioner, its base and its controls on the frozen benchmark.

    python jobs/nano_benchmark.py          (`make nano-benchmark`: the weights in the package)
    python jobs/nano_benchmark.py --runs=[runs/nano_recipe/seed0,runs/nano_recipe/seed1] --output runs/nano_seeds

Writes into runs/nano: summary.json, scores.json (every metric, attribute and stratum), predictions.jsonl. With --runs
also seeds.json: the scores of all seeds, to be kept with the weights of one of them.
"""

import bootstrap  # noqa: F401

from ureca.config import load_config
from ureca.evaluation.evaluate import evaluate
from ureca.nano.benchmark import (
    PROCESSES,
    SEEDS_FILE,
    NanoBenchmarkConfig,
    benchmark_summary,
    label_scenes,
    recipe_variants,
    recorded_seeds,
    seeds_record,
    shipped_variants,
)
from ureca.nano.frozen_scenes import NAME, load_benchmark, region_strata
from ureca.runs import Run, run_job
from ureca.storage.files import write_json


def main() -> None:
    config = load_config(NanoBenchmarkConfig, description=__doc__ or "")
    variants = recipe_variants(config.runs) if config.runs else shipped_variants()
    run = Run.start("nano", config, directory=config.output)
    out = run.directory.resolve()

    # The frozen scenes, labeled like any corpus.
    labeled = label_scenes(load_benchmark(), out / "benchmark", region_strata())

    # Captions of every variant, and their scores.
    evaluation = evaluate(
        variants,
        labeled.rows,
        output=out,
        truth=labeled.truth,
        strata=labeled.strata,
        max_new_tokens=config.max_new_tokens,
        processes=PROCESSES,
    )
    recorded = seeds_record(evaluation, labeled) if config.runs else recorded_seeds()
    if config.runs:
        write_json(out / SEEDS_FILE, recorded)
    run.finish(benchmark_summary(evaluation, labeled, name=NAME, recorded=recorded))
    print(f"\n{evaluation.table()}")


if __name__ == "__main__":
    run_job(main)
