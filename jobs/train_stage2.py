#!/usr/bin/env python
"""Train stage 2: LoRA on the language model, starting from stage 1's mask encoder.

Laptop:   python jobs/train_stage2.py --config nano_stage2 --table runs/label_corpus/regions.parquet
Cluster:  ray job submit --working-dir . -- python jobs/train_stage2.py --config nano_stage2 \\
              --table /shared/regions.parquet --run_directory /shared/stage2
          (a submitted job's working folder is deleted: use paths that every machine of the cluster sees)
Controls: the same with --cue none --run_directory runs/train_tuned_none: no region cue;
          with --cue box --run_directory runs/train_tuned_box: the region's box in words.
Running the same command again resumes. Next: jobs/export.py --model runs/train_stage2/model
"""

import dataclasses

import bootstrap  # noqa: F401  (makes ureca importable if it is not installed)

from ureca.config import load_config
from ureca.runs import Run, run_job
from ureca.training.config import Stage2Config


def main() -> None:
    config = load_config(Stage2Config, description=__doc__ or "")  # YAML, then --section.key=value
    from ureca.training.launch import fit  # slow imports, after the options are parsed
    from ureca.training.plan import resolve_defaults

    config = resolve_defaults(config)
    run = Run.start("train_stage2", config, directory=config.run_directory or None)
    result = fit(config, run.directory)  # Ray Train + DeepSpeed
    run.finish(dataclasses.asdict(result))  # summary.json


if __name__ == "__main__":
    run_job(main)
