#!/usr/bin/env python
"""Train stage 1: mask encoder and projection; the base is frozen.

Laptop:   python jobs/train_stage1.py --config nano_stage1 --table runs/label_corpus/regions.parquet
Cluster:  ray job submit --working-dir . -- python jobs/train_stage1.py --config nano_stage1 \\
              --table /shared/regions.parquet --run_directory /shared/stage1
          (a submitted job's working folder is deleted: use paths that every machine of the cluster sees)
Running the same command again resumes. Next: jobs/train_stage2.py --init runs/train_stage1/model
"""

import dataclasses

import bootstrap  # noqa: F401  (makes ureca importable if it is not installed)

from ureca.config import load_config
from ureca.runs import Run, run_job
from ureca.training.config import Stage1Config


def main() -> None:
    config = load_config(Stage1Config, description=__doc__ or "")  # YAML, then --section.key=value
    from ureca.training.launch import fit  # slow imports, after the options are parsed
    from ureca.training.plan import resolve_defaults

    config = resolve_defaults(config)
    run = Run.start("train_stage1", config, directory=config.run_directory or None)
    result = fit(config, run.directory)  # Ray Train + DeepSpeed
    run.finish(dataclasses.asdict(result))  # summary.json


if __name__ == "__main__":
    run_job(main)
