#!/usr/bin/env python
"""Caption a corpus with the captioner: from images with masks, or a region table, to a region table with captions.

Laptop:   python jobs/caption_corpus.py --sources=photos,scenes --run_directory=runs/caption_corpus
Relabel:  … --sources=runs/label_corpus/regions.parquet --model=runs/export
Service:  … --endpoint.url=http://localhost:8000, its access token in URECA_TOKEN
Cluster:  ray job submit --working-dir . -- python jobs/caption_corpus.py --sources=s3://… --table=s3://….parquet
Running the same command again resumes.
Next: ureca view runs/caption_corpus/regions.parquet
"""

import dataclasses

import bootstrap  # noqa: F401  (makes ureca importable if it is not installed)

from ureca.captioning.config import CaptionConfig
from ureca.config import load_config
from ureca.runs import Run, run_job


def main() -> None:
    config = load_config(CaptionConfig, description=__doc__ or "")  # YAML, then --section.key=value
    from ureca.captioning.job import caption_corpus  # slow import, after the options are parsed

    run = Run.start("caption_corpus", config, directory=config.run_directory or None)
    summary = caption_corpus(config, run.directory)  # an engine in each GPU actor, or a service; on Ray Data
    run.finish(dataclasses.asdict(summary))  # summary.json


if __name__ == "__main__":
    run_job(main)
