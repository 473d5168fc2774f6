#!/usr/bin/env python
"""Label a corpus: from images with masks to a region table with three captions per region.

Laptop:   python jobs/label_corpus.py --sources=photos,scenes --run_directory=runs/label_corpus
Model:    … --describer=chat --chat.base_url=http://localhost:8000/v1 --chat.model=NAME, or --describer=vllm
Cluster:  ray job submit --working-dir . -- python jobs/label_corpus.py --sources=s3://… --table=s3://….parquet
Before:   … --dry_run=true prints what would be started, written and asked, and its cost
Running the same command again resumes.
Next: python jobs/train_stage1.py --config nano_stage1 --table runs/label_corpus/regions.parquet
"""

import dataclasses

import bootstrap  # noqa: F401  (makes ureca importable if it is not installed)

from ureca.config import load_config
from ureca.labeling.config import LabelConfig
from ureca.labeling.dry_run import plan_labeling
from ureca.labeling.job import label_corpus
from ureca.runs import Run, run_job


def main() -> None:
    config = load_config(LabelConfig, description=__doc__ or "")  # YAML, then --section.key=value
    run = Run.start("label_corpus", config, directory=config.run_directory or None)
    if config.dry_run:
        run.finish(plan_labeling(config, run.directory))  # reads a few images, asks nothing
        return
    summary = label_corpus(config, run.directory)  # mask trees, four passes, verification: on Ray Data
    run.finish(dataclasses.asdict(summary))  # summary.json


if __name__ == "__main__":
    run_job(main)
