#!/usr/bin/env python
"""Build the mask trees of a corpus: from images with masks to a region table without captions, with statistics.

Laptop:   python jobs/build_mask_trees.py --sources=photos,scenes --run_directory=runs/build_mask_trees
Cluster:  ray job submit --working-dir . -- python jobs/build_mask_trees.py --sources=s3://… --table=s3://….parquet
Running the same command again resumes.
Next: ureca view runs/build_mask_trees/mask_trees.parquet; python jobs/label_corpus.py with the same sources and tree
"""

import dataclasses

import bootstrap  # noqa: F401  (makes ureca importable if it is not installed)

from ureca.config import load_config
from ureca.labeling.mask_trees import MaskTreesConfig, build_mask_trees
from ureca.runs import Run, run_job


def main() -> None:
    config = load_config(MaskTreesConfig, description=__doc__ or "")  # YAML, then --section.key=value
    run = Run.start("build_mask_trees", config, directory=config.run_directory or None)
    summary = build_mask_trees(config, run.directory)  # on Ray Data
    run.finish(dataclasses.asdict(summary))  # summary.json


if __name__ == "__main__":
    run_job(main)
