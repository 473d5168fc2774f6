"""The YAML that Ray Serve reads."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from ureca.model.presets import shipped
from ureca.serving.settings import Settings

YAML = Path(__file__).parents[2] / "serve_apps" / "captioner.yaml"


def test_the_shipped_yaml_names_the_app_and_settings_it_takes():
    [application] = yaml.safe_load(YAML.read_text())["applications"]
    module, name = application["import_path"].split(":")
    assert callable(getattr(import_module(module), name))
    assert Settings.model_validate(application["args"]) == Settings()


def test_the_default_model_is_the_one_in_the_package():
    assert Settings().export_dir == shipped("nano_captioner")
    assert Settings().model_name == "nano_captioner"
    assert Settings(model="runs/demo/export").model_name == "export"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"modle": "x"}, "modle"),
        ({"limits": {"max_region": 3}}, "max_region"),
        ({"engine": {"dtype": "int8"}}, "engine.dtype"),
        ({"autoscaling": {"max_replicas": 0}}, "autoscaling.max_replicas"),
        ({"limits": {"max_tokens": -1}}, "limits.max_tokens"),
    ],
)
def test_what_the_settings_do_not_know_or_allow_is_refused(args, said):
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate(args)
