"""Validation of labeling jobs before they start."""

import pytest

from ureca.config import load_config
from ureca.errors import ConfigError
from ureca.labeling.config import LabelConfig
from ureca.labeling.describers.vllm import VllmConfig
from ureca.labeling.distractors import DistractorConfig
from ureca.labeling.job import rows_plan
from ureca.regions.tree import TreeConfig


def test_load_config_command_line_options_reach_settings():
    config = load_config(LabelConfig, ["--sources=a,b", "--tree=paper", "--distractors.max_count=3"])
    assert config.sources == ("a", "b")
    assert config.settings().tree == TreeConfig.preset("paper")
    assert config.settings().distractors.max_count == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sources": ()}, "sources"),
        ({"tree": "papper"}, "'papper'"),
        ({"actors": -1}, "actors=-1:.*0"),
        ({"images_per_block": 0}, "images_per_block=0:.*1"),
        ({"images_in_flight": 0}, "images_in_flight=0:.*1"),
        ({"judge_share": 0.1}, "attributes"),
        ({"describer": "vllm", "gpus_per_actor": 1}, "gpus_per_actor"),
        ({"preset": "paper", "tree": "paper"}, "preset=paper"),
        ({"preset": "paper"}, "preset=paper.*features.kind=dinov2.*features.model="),
        ({"table": "labels"}, "table=labels"),
    ],
)
def test_label_config_invalid_option_raises(wrong, message):
    with pytest.raises(ConfigError, match=message):
        LabelConfig(**{"sources": ("photos",), **wrong})


def test_preset_paper_sets_tree_and_threshold_without_check():
    config = load_config(
        LabelConfig, ["--sources=a", "--preset=paper", "--features.kind=dinov2", "--proposals.kind=segments"]
    )
    settings = config.settings()
    assert settings.tree == TreeConfig.preset("paper")
    assert settings.distractors == DistractorConfig(min_similarity=0.8, max_count=20, related=True)
    assert settings.features.kind == "dinov2"
    assert not settings.verify
    assert settings.proposals is not None


@pytest.mark.parametrize(
    ("vllm", "actors", "gpus"),
    [
        (VllmConfig(tensor_parallel_size=2), 2, 2.0),
        (VllmConfig(tensor_parallel_size=4), 1, 4.0),
        (VllmConfig(gpus_per_actor=0.5), 8, 0.5),
    ],
)
def test_rows_plan_one_engine_per_gpu_share(vllm, actors, gpus):
    config = LabelConfig(sources=("a",), describer="vllm", vllm=vllm, images_per_block=4)
    resources = {"CPU": 64.0, "GPU": 4.0}
    plan = rows_plan(config, 1000, resources)
    assert plan.gpus_per_actor == gpus
    assert plan.num_actors(resources["CPU"], resources["GPU"]) == actors


def test_rows_plan_too_few_gpus_raises_and_no_gpus_means_cpus():
    config = LabelConfig(sources=("a",), describer="vllm", vllm=VllmConfig(tensor_parallel_size=8))
    with pytest.raises(ConfigError, match="8 GPUs.*4"):
        rows_plan(config, 10, {"CPU": 64.0, "GPU": 4.0})
    assert rows_plan(config, 10, {"CPU": 4.0}).gpus_per_actor == 0


def test_rows_plan_holds_blocks_for_twice_images_in_flight():
    plan = rows_plan(LabelConfig(sources=("a",), images_in_flight=30, images_per_block=4), 1001, {"CPU": 8.0})
    assert (plan.blocks_in_flight, plan.num_blocks) == (15, 251)
    assert plan.num_actors(8, 0) == 6
    assert rows_plan(LabelConfig(sources=("a",)), 3, {"CPU": 8.0}).num_actors(8, 0) == 1
