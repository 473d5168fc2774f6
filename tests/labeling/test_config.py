"""What a labeling job refuses before it starts."""

import pytest

from ureca.config import load_config
from ureca.errors import ConfigError
from ureca.labeling import LabelConfig
from ureca.regions.tree import TreeConfig


def test_command_line_makes_a_configuration():
    config = load_config(LabelConfig, ["--sources=a,b", "--tree=paper", "--distractors.max_count=3"])
    assert config.sources == ("a", "b")
    assert config.walk().tree == TreeConfig.preset("paper")
    assert config.walk().distractors.max_count == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sources": ()}, "sources is empty"),
        ({"tree": "papper"}, "mask tree preset 'papper' does not exist; there are default, paper"),
        ({"actors": -1}, "actors=-1: give 0 or more"),
        ({"images_per_block": 0}, "images_per_block=0: give 1 or more"),
        ({"table": "labels"}, "table=labels: give the name of a .parquet file"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        LabelConfig(**{"sources": ("photos",), **wrong})
