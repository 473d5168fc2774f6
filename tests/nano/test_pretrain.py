"""Pretraining of nano's base: it resumes where it stopped, and a location token finds its cell from the start."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ureca.errors import CheckpointError
from ureca.model.processor import GRID
from ureca.nano.architecture import LOCATIONS, nano_config, nano_processor, nano_tokenizer, new_nano
from ureca.nano.dense_head import DenseHead
from ureca.nano.pretrain import PretrainConfig, State, pretrain, start_lookups
from ureca.nano.pretrain_questions import vocabulary_texts
from ureca.runs import Run

TINY = {
    "width": 64,
    "layers": 2,
    "vision_steps": 2,
    "steps": 4,
    "vision_batch": 2,
    "batch": 1,
    "points": 2,
    "boxes": 1,
    "wheres": 1,
    "bf16": False,
    "evaluate_scenes": 1,
    "checkpoint_every": 2,
}


class Interrupted(Run):
    """Ends the job at its first checkpoint of the answers phase, as Ctrl-C would."""

    def log(self, **metrics: Any) -> None:
        if metrics.get("phase") == "check":
            raise KeyboardInterrupt
        super().log(**metrics)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    weights = []
    for name, starts in (("whole", (Run,)), ("cut", (Interrupted, Run))):
        config = PretrainConfig(**TINY, output=str(tmp_path / name))
        for kind in starts:
            run = kind.start("pretrain_nano", config, directory=config.output)
            try:
                base, scores = pretrain(config, run)
            except KeyboardInterrupt:
                assert kind is Interrupted
        assert {"image", "point", "box", "point_color"} <= scores.keys()
        weights.append(load_file(base / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key

    other = PretrainConfig(**{**TINY, "width": 96}, output=str(tmp_path / "cut"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        pretrain(other, Run.start("pretrain_nano", other, directory=other.output))


@pytest.mark.slow
def test_a_location_token_looks_at_its_own_cell(tmp_path: Path) -> None:
    """Even on an untrained vision tower: its position embeddings tell the cells apart."""
    config = PretrainConfig(**{**TINY, "vision_batch": 4}, output=str(tmp_path))
    tokenizer = nano_tokenizer(vocabulary_texts())
    nano_processor(tokenizer).save_pretrained(tmp_path)
    state = State(new_nano(nano_config(tokenizer, width=64, layers=2), seed=0), DenseHead(64))
    before = own_cell_share(state)
    start_lookups(config, state, tmp_path)
    assert own_cell_share(state, tokenizer) > 8 * before


def own_cell_share(state: State, tokenizer: Any = None) -> float:
    """Mean attention weight that the first head of the first layer gives a location token's own place."""
    from ureca.nano.scenes.draw import draw_scene

    model = state.model.eval()
    layer = model.model.language_model.layers[0]
    image = torch.from_numpy(draw_scene(77).image).permute(2, 0, 1)[None] / 255 * 4 - 2
    upper_left = [row * 2 * GRID + column * 2 for row in range(16) for column in range(16)]
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values=image, return_dict=True).pooler_output[0]
        ids = tokenizer.convert_tokens_to_ids([LOCATIONS[cell] for cell in upper_left]) if tokenizer else range(256)
        asking = model.get_input_embeddings().weight[list(ids)]
        query = layer.self_attn.q_proj(layer.input_layernorm(asking))[:, :32]
        key = layer.self_attn.k_proj(layer.input_layernorm(tokens))[:, :32]
        return float((query @ key.T / 32**0.5).softmax(-1).diagonal().mean())
