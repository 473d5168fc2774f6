"""Bases as the hub's `-hf` repositories are: flags, files, tokenizers and chat template of every family."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.captioners import drawn_example
from support.families import FAMILIES
from support.hub_base import write_hub_base

from ureca.model.captioner import Captioner
from ureca.model.packing import pack
from ureca.regions.rle import box_to_rle

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
