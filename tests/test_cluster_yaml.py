"""cluster.yaml against Ray's own schema and against what its head comment promises."""

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from support.paths import ROOT


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """Process the file as `ray up` does before its first AWS call."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(cluster))
    validate_config(config)
    return config


def test_ray_up_takes_the_file(cluster):
    config = prepared(cluster)
    assert config["provider"]["type"] == "aws"
    assert config["setup_commands"] == []


def test_the_schema_refuses_a_misspelled_key(cluster):
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        prepared({**cluster, "max_worker": 4})


def test_the_head_does_no_work_and_gpus_start_from_zero(cluster):
    types = prepared(cluster)["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert types
    assert all(worker["min_workers"] == 0 < worker["max_workers"] for worker in types.values())


def test_the_dashboard_is_not_open_to_the_network_and_a_token_is_asked_for(cluster):
    config = prepared(cluster)
    (start,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert list(config["file_mounts"].values()) == ["~/.ray/auth_token"]
