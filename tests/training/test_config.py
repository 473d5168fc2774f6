import os
import re
import subprocess
import sys

import numpy as np
import pytest
from support.paths import JOBS

from ureca.config import load_config
from ureca.errors import ConfigError
from ureca.training.config import Stage1Config, Stage2Config, Stage3Config
from ureca.training.data.sampler import Lengths, StepSampler
from ureca.training.deepspeed import learning_rate


@pytest.mark.parametrize(
    ("name", "cls"), [("nano_stage1", Stage1Config), ("nano_stage2", Stage2Config), ("nano_stage3", Stage3Config)]
)
def test_shipped_configurations_load(name: str, cls: type) -> None:
    config = load_config(cls, ["--config", str(JOBS / "configs" / f"{name}.yaml")])
    assert config.preset == "nano"


def test_paper_s_values_are_the_defaults() -> None:
    first, second = Stage1Config(table="t"), Stage2Config(table="t", init="m")
    assert (first.optimizer.learning_rate, second.optimizer.learning_rate) == (2e-4, 4e-5)
    assert (first.optimizer.warmup_share, first.optimizer.weight_decay) == (0.03, 0.01)
    assert first.batch.step_size == ("regions", 16)
    assert (second.cue, second.tune_mask_encoder, second.lora.dropout) == ("mask", False, 0.05)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (
            Stage1Config,
            ["--batch.images_per_step=5", "--batch.tokens_per_step=900"],
            "e.g. --batch.images_per_step=null",
        ),
        (Stage1Config, ["--batch.regions_per_step=0"], "batch.regions_per_step=0"),
        (Stage1Config, ["--batch.tokens_per_device=0"], "batch.tokens_per_device=0"),
        (Stage1Config, ["--batch.prefetch_steps=-1"], "batch.prefetch_steps=-1"),
        (Stage1Config, ["--optimizer.epochs=0"], "optimizer.epochs=0.0"),
        (Stage1Config, ["--optimizer.learning_rate=nan"], "number"),
        (Stage1Config, ["--checkpoints.every_steps=0"], "every_steps=0"),
        (Stage1Config, ["--checkpoints.keep_best=-1"], "checkpoints.keep_best=-1"),
        (Stage1Config, ["--workers.zero_stage=4"], "zero_stage"),
        (Stage1Config, ["--mask.tokens_per_tile=0"], "mask.tokens_per_tile=0"),
        (Stage1Config, ["--mask.input_scale=0"], "mask.input_scale=0.0"),
        (Stage2Config, ["--init=m", "--lora.rank=0"], "lora.rank=0"),
        (Stage2Config, ["--init=m", "--lora.alpha=-2"], "lora.alpha=-2"),
        (Stage2Config, ["--init=m", "--lora.dropout=1"], "lora.dropout=1.0"),
        (
            Stage1Config,
            ["--workers.use_gpu=true", "--workers.zero_stage=2", "--workers.offload_weights=true"],
            "workers.offload_weights=true",
        ),
        (
            Stage1Config,
            ["--workers.bf16=true", "--workers.offload_optimizer=true"],
            "workers.offload_optimizer=true",
        ),
        (Stage1Config, ["--workers.threads=0"], "workers.threads=0"),
        (Stage1Config, ["--workers.image_cache_mb=-1"], "image_cache_mb=-1"),
        (Stage2Config, [], "1's"),
        (Stage2Config, ["--cue=image", "--init=m"], "mask, box, none"),
        (Stage3Config, [], "2's"),
        (Stage3Config, ["--init=m", "--preference.beta=-1"], "preference.beta=-1.0"),
        (Stage3Config, ["--init=m", "--preference.label_smoothing=0.5"], "0.5"),
        (Stage3Config, ["--init=m", "--preference.rejected_per_region=0"], "must be at least 1"),
        (
            Stage3Config,
            ["--init=m", "--preference.beta=0", "--preference.sft_weight=0"],
            "loss is empty",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(cls: type, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(cls, ["--table=t", *arguments])


@pytest.mark.parametrize(
    ("job", "option"),
    [
        ("train_stage1", "--mask.kind"),
        ("train_stage2", "--tune_mask_encoder"),
        ("train_stage3", "--preference.beta"),
        ("export", "--output"),
    ],
)
def test_jobs_can_be_run_by_name_and_explain_themselves(job: str, option: str) -> None:
    script = JOBS / f"{job}.py"
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env python\n")
    received = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert option in received.stdout


def test_a_wrong_option_ends_the_job_with_one_line_and_exit_code_2() -> None:
    command = [sys.executable, str(JOBS / "train_stage1.py"), "--table=t", "--batch.images_per_stop=4"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: command line: unknown key 'batch.images_per_stop'. "
        "Did you mean images_per_step or tokens_per_step or regions_per_step?\n"
    )


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    """URECA (arXiv 2504.05305) appendix A and the authors' scripts, value by value."""
    first = load_config(Stage1Config, ["--config", "paper_stage1"])
    second = load_config(Stage2Config, ["--config", "paper_stage2"])
    assert (first.optimizer.learning_rate, first.optimizer.epochs) == (2e-4, 1)
    assert (second.optimizer.learning_rate, second.optimizer.epochs) == (4e-5, 2)
    config: Stage1Config | Stage2Config
    for config in (first, second):
        assert (config.optimizer.warmup_share, config.optimizer.weight_decay) == (0.03, 0.01)
        assert config.batch.step_size == ("regions", 16)
        assert config.batch.regions_per_visit == 1
        assert (config.preset, config.tile_limit, config.workers.zero_stage) == ("internvl2.5-8b", 6, 1)
        # With all regions of the table the steps are the authors' 8,635, along a cosine.
        assert config.heldout == 0
        every = Lengths(
            keys=np.arange(13816, dtype=np.uint64),
            regions=np.full(13816, 10),
            prefix=np.full(13816, 1798),
            mask=np.full(138160, 50),
            query=np.full(3, 24),
            captions=np.full((138160, 3), 32),
        )
        num_steps = StepSampler(every, config.batch, seed=0).num_steps(config.optimizer.epochs)
        assert num_steps == 8635 * config.optimizer.epochs
        rates = [learning_rate(step, num_steps, config.optimizer) for step in range(num_steps)]
        warm = round(0.03 * num_steps)
        assert max(rates) == rates[warm - 1] == config.optimizer.learning_rate
        halfway = warm + (num_steps - warm) // 2
        assert rates[halfway] == pytest.approx(config.optimizer.learning_rate / 2, rel=1e-3)
    assert (first.mask.kind, first.mask.projection, first.mask.tokens_per_tile) == ("channels", "linear", 16)
    assert (second.lora.rank, second.lora.alpha, second.lora.dropout) == (128, 256, 0.05)
    assert not second.tune_mask_encoder
