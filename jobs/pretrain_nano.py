#!/usr/bin/env python
"""Pretrain nano's base: a small InternVL that answers questions about synthetic scenes, without mask input.

    python jobs/pretrain_nano.py --output=runs/pretrain_nano        (running the same command again resumes)

Writes <output>/base: an HF-native folder with bf16 weights, tokenizer, processor and training.json (command, seed,
duration, scores by question kind on held-out scenes).
"""

import bootstrap  # noqa: F401

from ureca.config import config_to_dict, load_config
from ureca.nano.pretrain import PretrainConfig, pretrain
from ureca.runs import Run, run_job


def main() -> None:
    config = load_config(PretrainConfig, description=__doc__)
    run = Run.start("pretrain_nano", config, directory=config.output)
    base, scores = pretrain(config, run)
    run.finish({"base": str(base), "scores": scores, "config": config_to_dict(config)})


if __name__ == "__main__":
    run_job(main)
