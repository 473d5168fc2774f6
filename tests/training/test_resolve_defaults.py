"""A run's saved configuration holds the values from the preset or stage 1's model."""

from pathlib import Path
from typing import Any

import pytest

from ureca.errors import CheckpointError, ConfigError
from ureca.model.captioner import CaptionerConfig
from ureca.model.mask_encoder import MaskEncoderConfig
from ureca.training.config import MaskConfig, Stage1Config, Stage2Config
from ureca.training.plan import resolve_defaults


@pytest.fixture
def stage_1(tmp_path: Path) -> Path:
    mask = MaskEncoderConfig(tokens_per_tile=4, tile_px=64, hidden_size=32)
    CaptionerConfig(base="nano", base_hash="", tile_limit=3, mask=mask).save(tmp_path)
    return tmp_path


def test_nothing_that_a_preset_decides_stays_null():
    first = resolve_defaults(Stage1Config(table="t", preset="internvl2.5-8b"))
    assert (first.base, first.tile_limit, first.mask.tokens_per_tile) == ("OpenGVLab/InternVL2_5-8B-MPO-hf", 6, 16)
    second = resolve_defaults(Stage2Config(table="t", preset="internvl2.5-8b", init="not there yet"))
    assert (second.lora.rank, second.lora.alpha) == (128, 256)
    assert resolve_defaults(second) == second


def test_what_is_given_stays():
    given = Stage1Config(table="t", base="elsewhere", tile_limit=12, mask=MaskConfig(tokens_per_tile=32))
    config = resolve_defaults(given)
    assert (config.base, config.tile_limit, config.mask.tokens_per_tile) == ("elsewhere", 12, 32)


def test_after_stage_1_the_tile_limit_is_its_model_s(stage_1):
    assert resolve_defaults(Stage2Config(table="t", init=str(stage_1))).tile_limit == 3
    with pytest.raises(CheckpointError, match=r"3.*6\..*--tile_limit=3"):
        resolve_defaults(Stage2Config(table="t", init=str(stage_1), tile_limit=6))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tile_limit": 0}, "tile_limit=0"), ({"preset": "nan"}, "'nan'")],
)
def test_what_can_t_be_is_refused(options: dict[str, Any], message):
    with pytest.raises(ConfigError, match=message):
        resolve_defaults(Stage1Config(table="t", **options))
