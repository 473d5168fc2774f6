"""Validation of captioning jobs before they start, and their placement."""

import pytest

from ureca.captioning.config import CaptionConfig
from ureca.captioning.job import rows_plan
from ureca.config import load_config
from ureca.engine.config import EngineConfig
from ureca.errors import ConfigError


def test_load_config_command_line_options():
    config = load_config(CaptionConfig, ["--sources=a,b", "--styles=brief,unique", "--engine.max_num_seqs=8"])
    assert config.sources == ("a", "b")
    assert config.styles == ("brief", "unique")
    assert config.engine.max_num_seqs == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sources="], "sources"),
        (["--max_tokens=0"], "max_tokens=0:.*1"),
        (["--images_in_flight=0"], "images_in_flight=0:.*1"),
        (["--styles="], "styles="),
        (["--styles=brief,brief"], "styles=brief,brief"),
        (["--table=labels"], "table=labels"),
        (["--sources=a.parquet", "--table=a.parquet"], "table=a.parquet"),
        (["--tree=papper"], "'papper'"),
        (["--endpoint.url=localhost:8000"], "endpoint.url=localhost:8000"),
        (["--endpoint.url=http://a", "--model=b"], "endpoint.url=http://a"),
        (["--engine.tensor_parallel_size=0"], "engine.tensor_parallel_size=0:.*1"),
        (["--engine.section=vllm"], "section"),
        (["--engine.vllm_args={pipeline_parallel_size: 0}"], "pipeline_parallel_size=0"),
    ],
)
def test_caption_config_invalid_option_raises(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CaptionConfig, ["--sources=photos", *arguments])


@pytest.mark.parametrize(
    ("settings", "gpus", "actors", "gpus_per_actor"),
    [
        ({}, 8, 8, 1.0),
        ({"engine": EngineConfig(tensor_parallel_size=4)}, 8, 2, 4.0),
        ({"engine": EngineConfig(vllm_args={"pipeline_parallel_size": 2})}, 8, 4, 2.0),
        ({"engine": EngineConfig(gpus_per_actor=0.5, gpu_memory_utilization=0.4)}, 1, 2, 0.5),
        ({}, 0, 1, 0.0),
        ({"actors": 3}, 0, 3, 0.0),
    ],
)
def test_rows_plan_one_engine_per_gpu_share_else_one(settings, gpus, actors, gpus_per_actor):
    resources = {"CPU": 16.0, "GPU": float(gpus)}
    plan = rows_plan(CaptionConfig(sources=("a",), **settings), 1000, resources)
    assert plan.gpus_per_actor == gpus_per_actor
    assert plan.num_actors(16, gpus) == actors
