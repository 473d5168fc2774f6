"""Bases as the hub's `-hf` repositories are: flags, files, tokenizers and chat template of every family."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.captioners import drawn_example
from support.families import FAMILIES
from support.hub_base import write_hub_base

from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner
from ureca.model.packing import pack
from ureca.regions.rle import box_to_rle
from ureca.training.config import Stage1Config
from ureca.training.plan import Plan

KINDS = [(name, False) for name in FAMILIES] + [("qwen2", True)]
SIZE = (300, 640)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind[0] + ("_tied" if kind[1] else ""))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, tied = request.param
    return write_hub_base(tmp_path_factory.mktemp("hub"), family, tied=tied)


@pytest.fixture(scope="module")
def captioner(base: Path) -> Captioner:
    return Captioner.from_base(str(base), tile_limit=6, tokens_per_tile=4)


def test_sequence_equals_chat_template(captioner: Captioner) -> None:
    processor = captioner.processor
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    query = processor.query("unique")
    content = [{"type": "image", "image": image}, {"type": "text", "text": f"\n{query}"}]
    rendered = processor.hf.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    tiles = len(processor.image_inputs(image))
    assert tiles > 2
    # The image's line break ends the prefix, the query's begins the branch.
    assert list(rendered["input_ids"][0]) == processor.prefix_ids(tiles) + processor.branch_ids(
        processor.query("unique")
    )


def test_image_of_several_tiles_trains_and_captions(captioner: Captioner, tmp_path: Path) -> None:
    captioner.trainable(1)
    examples = [drawn_example(2, seed=0, size=SIZE), drawn_example(1, seed=1, size=(200, 210))]
    loss, tokens = captioner(pack(examples, captioner.processor, **captioner.pack_options()))
    (loss / int(tokens)).backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in captioner.mask_encoder.parameters() if p.requires_grad)
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    region = [box_to_rle((10, 10, 200, 200), SIZE)]
    caption = captioner.generate(image, region, ["describe"], max_new_tokens=6)
    captioner.save_pretrained(tmp_path)
    assert Captioner.from_pretrained(tmp_path).generate(image, region, ["describe"], max_new_tokens=6) == caption


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_row(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    record["text_config"]["vocab_size"] -= 1
    (folder / "config.json").write_text(json.dumps(record))


DISAGREEMENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "tile size": (
        lambda folder: change_json(folder / "preprocessor_config.json", size={"height": 448, "width": 448}),
        "tile size in pixels is 448.*224",
    ),
    "image tokens": (
        lambda folder: change_json(folder / "processor_config.json", image_seq_length=256),
        "image tokens per tile is 256.*16",
    ),
    "image token id": (lambda folder: change_json(folder / "config.json", image_token_id=7), "IMG_CONTEXT.*but 7"),
    "vocabulary": (drop_row, r"342 tokens.*341 rows"),
    "two matrices": (lambda folder: change_json(folder / "config.json", tie_word_embeddings=True), "lm_head.weight"),
}


@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_base_whose_files_disagree_is_refused_before_workers_start(name: str, tmp_path: Path) -> None:
    change, message = DISAGREEMENTS[name]
    folder = write_hub_base(tmp_path / "base", "qwen2")
    config = Stage1Config(table="t", base=str(folder), tile_limit=6)
    Plan.from_config(config, tmp_path / "run")
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        Plan.from_config(config, tmp_path / "run")
