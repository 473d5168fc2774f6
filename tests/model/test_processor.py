"""The sequence: image prefix, mask tokens, query, caption, as transformers' own processor and template write it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.families import processor_for

from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner, CaptionerConfig
from ureca.model.processor import CaptionerProcessor, location_token


def test_prefix_and_branch_are_what_the_chat_template_gives(tiny_captioner_f64: Captioner) -> None:
    processor = tiny_captioner_f64.processor
    image = np.zeros((300, 500, 3), dtype=np.uint8)
    query = processor.query("unique")
    content = [{"type": "image", "image": image}, {"type": "text", "text": f"\n{query}"}]
    rendered = processor.hf.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    tiles = len(processor.image_inputs(image))
    expected = processor.prefix_ids(tiles) + processor.branch_ids(query)
    assert list(rendered["input_ids"][0]) == expected


def test_image_tiles_and_mask_tiles_share_the_grid(tiny_captioner_f64: Captioner) -> None:
    from ureca.regions.rle import encode_mask

    processor = tiny_captioner_f64.processor
    for size in ((200, 200), (300, 500), (256, 1500), (900, 256)):
        mask = np.ones(size, dtype=bool)
        columns, rows = processor.grid(size)
        tiles = columns * rows + (columns * rows > 1)
        assert len(processor.image_inputs(np.zeros((*size, 3), dtype=np.uint8))) == tiles
        assert processor.mask_tiles(encode_mask(mask)).num_tiles == tiles


def test_a_box_in_words_names_its_first_and_last_cell(tiny_captioner_f64: Captioner) -> None:
    processor = tiny_captioner_f64.processor
    assert processor.box_text((0, 0, 100, 50), (100, 100)) == "<p0000> <p0511>"
    assert location_token(1.0, 1.0) == "<p1023>"


def test_a_box_is_asked_about_in_the_base_s_words_and_for_training_in_the_style_s_too(
    tiny_captioner_f64: Captioner,
) -> None:
    box, size = (0.0, 0.0, 100.0, 50.0), (100, 100)
    query = tiny_captioner_f64.processor.query
    assert query("unique", cue="box_question", box=box, size=size) == "what fills <p0000> <p0511>?"
    trained = query("unique", cue="box", box=box, size=size)
    assert trained == "what fills <p0000> <p0511>? describe this region so that no other fits."


def test_an_export_says_with_how_many_tiles_it_was_trained_and_another_number_is_refused(
    tiny_export: Path, tmp_path: Path
) -> None:
    from ureca.engine.prompts import PromptBuilder

    folder = tmp_path / "export"
    shutil.copytree(tiny_export, folder)
    path = folder / "processor_config.json"
    record = json.loads(path.read_text())
    assert record["image_processor"]["max_patches"] == CaptionerConfig.load(folder).tile_limit == 6
    for load in (Captioner.from_pretrained, PromptBuilder):
        load(folder)
    record["image_processor"]["max_patches"] = 12
    path.write_text(json.dumps(record))
    for load in (Captioner.from_pretrained, PromptBuilder):
        with pytest.raises(CheckpointError, match="1.*12.*1.*6"):
            load(folder)


def test_hub_processor_is_set_to_cut_tiles_and_saves_so(tmp_path: Path) -> None:
    """The hub's `-hf` repositories have crop_to_patches=false, which means one tile for every image."""
    processor = CaptionerProcessor(processor_for(), tile_limit=6)
    image = np.zeros((300, 600, 3), dtype=np.uint8)
    columns, rows = processor.grid((300, 600))
    assert len(processor.image_inputs(image)) == columns * rows + 1 > 2
    processor.save_pretrained(str(tmp_path))
    CaptionerProcessor.from_captioner(str(tmp_path), tile_limit=6)
    path = tmp_path / "processor_config.json"
    record = json.loads(path.read_text())
    assert record["image_processor"]["crop_to_patches"] is True
    record["image_processor"]["crop_to_patches"] = False
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="crop_to_patches=false"):
        CaptionerProcessor.from_captioner(str(tmp_path), tile_limit=6)
