from pathlib import Path

import pytest

from ureca.config import load_config
from ureca.errors import ConfigError
from ureca.training import Stage1Config, Stage2Config

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.mark.parametrize(("name", "cls"), [("stage1_nano", Stage1Config), ("stage2_nano", Stage2Config)])
def test_shipped_configurations_load(name: str, cls: type) -> None:
    config = load_config(cls, ["--config", str(CONFIGS / f"{name}.yaml")])
    assert config.preset == "nano"


def test_paper_s_values_are_the_defaults() -> None:
    first, second = Stage1Config(table="t"), Stage2Config(table="t", init="m")
    assert (first.optimizer.learning_rate, second.optimizer.learning_rate) == (2e-4, 4e-5)
    assert (first.optimizer.warmup_share, first.optimizer.weight_decay) == (0.03, 0.01)
    assert (second.cue, second.tune_mask_encoder, second.lora.dropout) == ("mask", False, 0.05)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (
            Stage1Config,
            ["--batch.images_per_step=5", "--workers.num_workers=2"],
            "batch.images_per_step=5 is no multiple of workers.num_workers=2",
        ),
        (Stage1Config, ["--optimizer.epochs=0"], "optimizer.epochs=0.0: must be above 0"),
        (Stage1Config, ["--optimizer.learning_rate=nan"], "must be a number above 0"),
        (Stage1Config, ["--checkpoints.every_steps=0"], "every_steps=0"),
        (Stage1Config, ["--workers.zero_stage=4"], "zero_stage"),
        (Stage2Config, [], "stage 2 starts from stage 1's model directory"),
        (Stage2Config, ["--cue=none", "--tune_mask_encoder=true"], "without masks their encoder can't learn"),
        (Stage2Config, ["--cue=box", "--init=m"], "mask, none"),
    ],
)
def test_what_cannot_work_is_refused_at_once(cls: type, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        load_config(cls, ["--table=t", *arguments])
