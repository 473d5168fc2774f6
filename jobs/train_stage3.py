#!/usr/bin/env python
"""Train stage 3, preference tuning: prefer a region's caption to its distractors' captions.

Laptop:   python jobs/train_stage3.py --config nano_stage3 --table runs/label_corpus/regions.parquet
Cluster:  ray job submit --working-dir . -- python jobs/train_stage3.py --config nano_stage3 \\
              --table /shared/regions.parquet --init /shared/stage2/model --run_directory /shared/stage3
Control:  the same with --preference.beta 0 --run_directory runs/train_stage3_control: the same number of steps
          on captions alone.
Running the same command again resumes. Next: jobs/export.py --model runs/train_stage3/model
"""

import dataclasses

import bootstrap  # noqa: F401  (makes ureca importable if it is not installed)

from ureca.config import load_config
from ureca.runs import Run, run_job
from ureca.training.config import Stage3Config


def main() -> None:
    config = load_config(Stage3Config, description=__doc__ or "")  # YAML, then --section.key=value
    from ureca.training.launch import fit  # slow imports, after the options are parsed
    from ureca.training.plan import resolve_defaults

    config = resolve_defaults(config)
    run = Run.start("train_stage3", config, directory=config.run_directory or None)
    result = fit(config, run.directory)  # Ray Train + DeepSpeed
    run.finish(dataclasses.asdict(result))  # summary.json


if __name__ == "__main__":
    run_job(main)
