"""Engine arguments for images of several tiles."""

import json

from support.families import IMAGE_TOKENS
from support.hub_base import write_hub_base

from ureca.engine.chat import _tiling


def test_tiling_of_internvl_counts_all_tiles_and_thumbnail(tmp_path):
    options = _tiling(str(write_hub_base(tmp_path / "base", "qwen2")))
    assert options == {"longest_image": 13 * IMAGE_TOKENS + 2, "mm_processor_kwargs": {"crop_to_patches": True}}


def test_tiling_of_other_models_reads_their_configuration_only(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    assert _tiling(str(tmp_path)) == {}
