"""Saving, loading, stages, export, and generation against the model's own forward pass."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ureca.errors import CheckpointError, ConfigError
from ureca.model.captioner import MASK_ENCODER_FILE, Captioner
from ureca.model.exporting.export import export, export_digest
from ureca.model.internvl.presets import preset
from ureca.model.packing import Example, RegionExample, pack
from ureca.regions.rle import encode_mask

SIZE = (300, 500)


def example() -> Example:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    mask = np.zeros(SIZE, dtype=bool)
    mask[40:120, 60:200] = True
    return Example(image, (RegionExample(encode_mask(mask), "describe this region.", "a red part"),))


def loss(captioner: Captioner) -> float:
    with torch.no_grad():
        return float(captioner(pack([example()], captioner.processor, **captioner.pack_options()))[0])


@pytest.fixture
def captioner(tiny_base_dir: str) -> Captioner:
    return Captioner.from_base(tiny_base_dir, tile_limit=6, tokens_per_tile=4, seed=1)


def with_lora(captioner: Captioner) -> Captioner:
    captioner.add_lora(rank=4, dropout=0.0)
    torch.manual_seed(3)
    for name, parameter in captioner.named_parameters():
        if ".lora_B" in name:  # zero at the start: give it something to merge
            torch.nn.init.normal_(parameter, std=0.05)
    return captioner


def test_saved_and_loaded_gives_the_same_loss(captioner: Captioner, tmp_path: Path) -> None:
    with_lora(captioner).save_pretrained(tmp_path)
    assert loss(Captioner.from_pretrained(tmp_path)) == pytest.approx(loss(captioner), rel=1e-6)


def test_frozen_base_can_be_held_in_bfloat16(captioner: Captioner) -> None:
    captioner = with_lora(captioner)
    names = captioner.trainable(2)
    before = loss(captioner)
    captioner.cast_frozen_base(torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in captioner.named_parameters()}
    assert {types[name] for name in names} == {torch.float32}
    assert {types[name] for name in types if name.startswith("mask_encoder.")} == {torch.float32}
    assert {types[name] for name in types if name.startswith("base.") and name not in names} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        after = loss(captioner)
    assert after == pytest.approx(before, rel=0.01)
    assert after != before


def test_export_merges_lora_into_a_plain_checkpoint(captioner: Captioner, tmp_path: Path) -> None:
    before = loss(captioner)
    with_lora(captioner).save_pretrained(tmp_path / "model")
    tuned = loss(captioner)
    assert abs(tuned - before) > 1e-3
    exported = Captioner.from_pretrained(export(tmp_path / "model", tmp_path / "export"))
    assert loss(exported) == pytest.approx(tuned, rel=1e-5)
    assert not any("lora" in name for name, _ in exported.named_parameters())


def test_the_digest_of_an_export_changes_with_what_captions_depend_on(tiny_export: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_export, tmp_path / "copy")
    digest = export_digest(copy)
    assert digest == export_digest(tiny_export)
    (copy / "README.md").write_text("another card")
    (copy / "training.json").write_text("{}")
    assert export_digest(copy) == digest
    for name in ("model.safetensors", "mask_encoder.safetensors", "config.json", "tokenizer.json"):
        before, data = export_digest(copy), (copy / name).read_bytes()
        (copy / name).write_bytes(data + b" ")
        assert export_digest(copy) != before, name


def test_stage_1_trains_the_mask_encoder_and_stage_2_lora(captioner: Captioner) -> None:
    assert all(name.startswith("mask_encoder.") for name in captioner.trainable(1))
    captioner.add_lora(rank=4)
    names = captioner.trainable(2)
    assert names
    assert all(".lora_" in name and "language_model" in name for name in names)
    assert not any("vision_tower" in name for name in names)
    both = captioner.trainable(2, tune_mask_encoder=True)
    assert any(name.startswith("mask_encoder.") for name in both)


def test_generate_follows_the_packed_forward_pass(tiny_captioner_f64: Captioner) -> None:
    """Greedy tokens of `generate` are the arg-max of the training path on the same sequence."""
    captioner, item = tiny_captioner_f64, example()
    region = item.regions[0]
    embeddings, mask = captioner.prompt_embeddings(item.image, [region.segmentation], [region.query])
    ids = captioner.base.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=5, do_sample=False)[0]
    forced = Example(item.image, (RegionExample(region.segmentation, region.query, "x"),))
    batch = pack([forced], captioner.processor, **captioner.pack_options())
    first = int((batch.labels != -100).nonzero()[0])
    for position, token in enumerate(ids.tolist()):
        hidden = captioner.hidden_states(batch)[first + position]
        assert int(captioner.base.lm_head(hidden).argmax()) == token
        batch = extended(batch, first + position + 1, token)


def extended(batch, position: int, token: int):  # type: ignore[no-untyped-def]
    """The batch cut at `position`, with `token` standing there."""
    from dataclasses import replace

    fields = {
        name: torch.cat([value[:position], value[position - 1 : position]])
        for name, value in vars(batch).items()
        if name in ("input_ids", "position_ids", "branch", "labels", "is_mask")
    }
    fields["input_ids"][-1] = token
    fields["position_ids"][-1] += 1
    return replace(batch, **fields, layout=replace(batch.layout, branches=((position + 1,),)))


def test_regions_of_one_image_are_captioned_alone_as_together(captioner: Captioner) -> None:
    item = example()
    small = np.zeros(SIZE, dtype=bool)
    small[200:210, 400:420] = True
    masks = [item.regions[0].segmentation, encode_mask(small), None]
    queries = ["describe this region.", "name it.", "describe this region."]
    together = captioner.generate(item.image, masks, queries, max_new_tokens=6)
    alone = [captioner.generate(item.image, [m], [q], max_new_tokens=6)[0] for m, q in zip(masks, queries, strict=True)]
    assert together == alone


def test_the_shared_prefix_changes_no_caption(tiny_export: Path) -> None:
    """`generate` runs the prefix once; `prompt_embeddings` holds it in every row, as transformers alone would."""
    captioner, item = Captioner.from_pretrained(tiny_export), example()
    small = np.zeros(SIZE, dtype=bool)
    small[200:210, 400:420] = True
    masks = [item.regions[0].segmentation, encode_mask(small), None]
    queries = ["describe this region.", "name it.", "describe this region."]
    embeddings, mask = captioner.prompt_embeddings(item.image, masks, queries)
    end = captioner.processor.end_token_id
    plain = captioner.base.generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    expected = captioner.processor.tokenizer.batch_decode(plain, skip_special_tokens=True)
    captions = captioner.generate(item.image, masks, queries, max_new_tokens=8)
    assert captions == [" ".join(text.split()) for text in expected]
    assert len(set(captions)) == 3


def test_another_base_is_refused(captioner: Captioner, tiny_base_dir: str, tmp_path: Path) -> None:
    captioner.save_pretrained(tmp_path / "model")
    other = tmp_path / "other"
    shutil.copytree(tiny_base_dir, other)
    changed = Captioner.from_base(tiny_base_dir, tile_limit=6).base
    with torch.no_grad():
        changed.lm_head.weight.add_(0.1)
    changed.save_pretrained(other)
    config = (tmp_path / "model" / "captioner_config.json").read_text().replace(tiny_base_dir, str(other))
    (tmp_path / "model" / "captioner_config.json").write_text(config)
    with pytest.raises(CheckpointError, match="trained"):
        Captioner.from_pretrained(tmp_path / "model")


def test_a_mask_encoder_of_another_shape_is_refused(captioner: Captioner, tiny_base_dir: str, tmp_path: Path) -> None:
    captioner.save_pretrained(tmp_path / "a")
    Captioner.from_base(tiny_base_dir, tile_limit=6, tokens_per_tile=2).save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "b" / MASK_ENCODER_FILE, tmp_path / "a" / MASK_ENCODER_FILE)
    with pytest.raises(CheckpointError, match=r"mask_encoder\.safetensors:.*captioner_config\.json"):
        Captioner.from_pretrained(tmp_path / "a")


def test_a_folder_that_is_no_captioner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"captioner_config\.json"):
        Captioner.from_pretrained(tmp_path)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'huge';.*internvl2.5-1b"):
        preset("huge")


def test_unknown_style_names_the_known_ones(tiny_captioner_f64: Captioner) -> None:
    with pytest.raises(ConfigError, match="detailed"):
        tiny_captioner_f64.processor.query("poetic")
