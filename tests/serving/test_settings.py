"""The YAML that Ray Serve reads."""

from importlib import import_module

import pytest
import yaml
from pydantic import ValidationError
from support.paths import SERVE_APPS

from ureca.model.internvl.presets import packaged_weights
from ureca.serving.settings import Settings, one_model

YAML = SERVE_APPS / "captioner.yaml"


def test_the_shipped_yaml_names_the_app_and_settings_it_takes():
    [application] = yaml.safe_load(YAML.read_text())["applications"]
    module, name = application["import_path"].split(":")
    assert callable(getattr(import_module(module), name))
    assert Settings.model_validate(application["args"]) == Settings()


def test_the_default_model_is_the_one_in_the_package():
    [(name, model)] = Settings().models.items()
    assert (name, model.export_dir) == ("nano_captioner", packaged_weights("captioner"))
    assert one_model(None) == Settings().models


def test_one_model_is_named_after_its_folder():
    [(name, model)] = one_model("runs/my export", num_gpus=0.5).items()
    assert (name, model.export, model.num_gpus) == ("my_export", "runs/my export", 0.5)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"modle": "x"}, "modle"),
        ({"limits": {"max_region": 3}}, "max_region"),
        ({"models": {}}, "models"),
        ({"models": {"a b": {}}}, "models"),
        ({"models": {"a": {"model": "x"}}}, "models.a.model"),
        ({"models": {"a": {"engine": {"dtype": "int8"}}}}, "models.a.engine.dtype"),
        ({"models": {"a": {"engine": {"tensor_parallel_size": 2}}}}, "num_gpus=0.*2 GPUs"),
        ({"models": {"a": {"num_gpus": 2}}}, "num_gpus=2.*one GPU"),
        ({"models": {"a": {"engine": {"vllm_args": {"pipeline_parallel_size": "2"}}}}}, "pipeline_parallel_size=2"),
        ({"models": {"a": {"autoscaling": {"max_replicas": 0}}}}, "models.a.autoscaling.max_replicas"),
        ({"limits": {"max_tokens": -1}}, "limits.max_tokens"),
        ({"proposals": {"kid": "sam"}}, "proposals.kid"),
        ({"proposals": {"kind": "sam", "sam": {"weights": "x"}}}, "proposals.sam.weights"),
    ],
)
def test_what_the_settings_do_not_know_or_allow_is_refused(args, said):
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate(args)


def test_gpus_that_share_model_are_tensor_times_pipeline_parallel():
    engine = {"tensor_parallel_size": 2, "vllm_args": {"pipeline_parallel_size": 2}}
    model = Settings.model_validate({"models": {"a": {"num_gpus": 4, "engine": engine}}}).models["a"]
    assert model.engine.vllm_args == {"pipeline_parallel_size": 2}
