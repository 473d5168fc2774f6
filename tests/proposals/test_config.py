"""Validation of proposal settings."""

import pytest

from ureca.config import config_from_dict, config_to_dict
from ureca.errors import ConfigError
from ureca.proposals.config import ProposalConfig, SamConfig


def test_region_limit_defaults_to_the_proposer_s_number():
    assert ProposalConfig().region_limit == 24
    assert ProposalConfig(kind="sam").region_limit == 100
    assert ProposalConfig(kind="sam", max_regions=7).region_limit == 7


def test_proposal_config_round_trips_through_yaml_types():
    config = ProposalConfig(kind="sam", sam=SamConfig(model="a/b", device="cuda:1"))
    assert config_from_dict(ProposalConfig, config_to_dict(config), where="here") == config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "sam2"}, "kind=sam2"),
        ({"max_regions": 0}, "proposals.max_regions=0"),
        ({"min_area_share": 0.7}, "smaller"),
        ({"max_iou": 0.0}, "proposals.max_iou=0.0"),
        ({"sam": {"points_per_side": 0}}, "proposals.sam.points_per_side=0"),
        ({"sam": {"min_iou": 88}}, "proposals.sam.min_iou=88.0"),
    ],
)
def test_proposal_config_invalid_value_is_refused(settings, expected):
    with pytest.raises(ConfigError) as raised:
        config_from_dict(ProposalConfig, settings, where="here")
    assert expected in str(raised.value)
