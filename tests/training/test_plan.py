import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ureca.errors import CheckpointError, ConfigError
from ureca.model.captioner import Captioner
from ureca.training.checkpoint.files import refuse_other_settings
from ureca.training.config import BatchConfig, CheckpointConfig, LoraConfig, Stage1Config, Stage2Config, WorkersConfig
from ureca.training.plan import Plan


@pytest.fixture(scope="module")
def stage1_model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1") / "model"
    Plan.from_config(Stage1Config(table="t", base=str(tiny_base)), folder.parent).captioner().save_pretrained(folder)
    return folder


def trained(captioner: Captioner) -> set[str]:
    return {name for name, parameter in captioner.named_parameters() if parameter.requires_grad}


def test_stage_1_trains_the_mask_encoder_only(tiny_base: Path, tmp_path: Path) -> None:
    captioner = Plan.from_config(Stage1Config(table="t", base=str(tiny_base)), tmp_path).captioner()
    names = trained(captioner)
    assert names
    assert all(name.startswith("mask_encoder.") for name in names)
    assert {name for name, _ in captioner.mask_encoder.named_parameters(prefix="mask_encoder")} == names


@pytest.mark.parametrize("tune", [False, True])
def test_stage_2_trains_lora_and_the_mask_encoder_if_told(
    tune: bool, tiny_base: Path, stage1_model: Path, tmp_path: Path
) -> None:
    config = Stage2Config(table="t", base=str(tiny_base), init=str(stage1_model), tune_mask_encoder=tune)
    names = trained(Plan.from_config(config, tmp_path).captioner())
    lora = {name for name in names if ".lora_" in name}
    assert lora
    assert not [name for name in lora if "vision" in name]
    assert bool(names - lora) is tune
    assert all(name.startswith("mask_encoder.") for name in names - lora)


def test_the_control_trains_lora_alone_and_needs_no_stage_1(tiny_base: Path, tmp_path: Path) -> None:
    config = Stage2Config(table="t", base=str(tiny_base), cue="none", tune_mask_encoder=True)
    names = trained(Plan.from_config(config, tmp_path).captioner())
    assert names
    assert all(".lora_" in name for name in names)


def test_the_seed_alone_draws_the_first_weights(tiny_base: Path, stage1_model: Path, tmp_path: Path) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(int(torch.randint(100, (1,))))  # whatever the process drew before
        config = Stage2Config(
            table="t", base=str(tiny_base), init=str(stage1_model), lora=LoraConfig(rank=4), seed=seed
        )
        captioner = Plan.from_config(config, tmp_path).captioner()
        return [value for name, value in captioner.state_dict().items() if "lora_A" in name]

    assert all(torch.equal(a, b) for a, b in zip(weights(3), weights(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(3), weights(4), strict=True))


def test_model_of_another_base_is_refused_by_name(stage1_model: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{tiny_base}.*nano"):
        Plan.from_config(Stage2Config(table="t", init=str(stage1_model)), tmp_path)


def test_other_mask_tokens_than_the_model_s_are_refused(stage1_model: Path, tiny_base: Path, tmp_path: Path) -> None:
    config = Stage2Config(table="t", base=str(tiny_base), init=str(stage1_model), tokens_per_tile=4)
    with pytest.raises(CheckpointError, match="trained"):
        Plan.from_config(config, tmp_path)
    Plan.from_config(replace(config, tokens_per_tile=8), tmp_path)


def test_base_that_changed_under_its_name_is_refused(stage1_model: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    other.mkdir()
    for file in stage1_model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    record = json.loads((other / "captioner_config.json").read_text())
    record["base_hash"] = "0" * 64
    (other / "captioner_config.json").write_text(json.dumps(record))
    plan = Plan.from_config(Stage2Config(table="t", base=str(tiny_base), init=str(other)), tmp_path)
    with pytest.raises(CheckpointError, match="000000000000"):
        plan.captioner()


def test_model_of_stage_2_is_no_start_for_stage_2(stage1_model: Path, tiny_base: Path, tmp_path: Path) -> None:
    config = Stage2Config(table="t", base=str(tiny_base), init=str(stage1_model), lora=LoraConfig(rank=4))
    Plan.from_config(config, tmp_path).captioner().save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="already"):
        Plan.from_config(Stage2Config(table="t", base=str(tiny_base), init=str(tmp_path / "model")), tmp_path)


def test_what_is_no_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="captioner"):
        Plan.from_config(Stage2Config(table="t", init=str(tmp_path)), tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("captioner_config.json", b"{", r"captioner_config\.json:.*\(JSONDecodeError"),
        ("captioner_config.json", b"{}", r"captioner_config\.json:.*\(KeyError"),
        ("mask_encoder.safetensors", b"cut off", r"mask_encoder\.safetensors"),
        ("mask_encoder.safetensors", None, r"mask_encoder\.safetensors"),
    ],
)
def test_a_damaged_model_directory_is_refused_before_anything_starts(
    file: str, content: bytes | None, message: str, stage1_model: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(stage1_model, tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    if content is not None:
        (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Plan.from_config(Stage2Config(table="t", base=str(tiny_base), init=str(tmp_path / "model")), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"model\.safetensors.*model\.safetensors\.index\.json"), (b"cut off", "can't be read")],
)
def test_a_base_without_its_weights_is_refused_before_anything_starts(
    content: bytes | None, message: str, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    if content is not None:
        (tmp_path / "base" / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Plan.from_config(Stage1Config(table="t", base=str(tmp_path / "base")), tmp_path)


def test_a_base_without_its_tokenizer_is_refused_in_one_line(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    for file in (tmp_path / "base").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"InternVL.*tokenizer\.json") as refused:
        Plan.from_config(Stage1Config(table="t", base=str(tmp_path / "base")), tmp_path)
    assert "\n" not in str(refused.value)


def test_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'mini'"):
        Plan.from_config(Stage1Config(table="t", preset="mini"), tmp_path)


def test_a_checkpoint_of_another_plan_is_refused_and_both_sides_named(tmp_path: Path) -> None:
    here = Plan.from_config(Stage1Config(table="t"), tmp_path).identity()
    there = Plan.from_config(Stage1Config(table="t", seed=1, workers=WorkersConfig(bf16=True)), tmp_path).identity()
    with pytest.raises(CheckpointError) as refused:
        refuse_other_settings("runs/x", there, here)
    message = str(refused.value)
    assert message.startswith("runs/x: ")
    assert "workers.bf16=True in the checkpoint, False here" in message
    assert "seed=1 in the checkpoint, 0 here" in message
    assert "--run_directory" in message


def test_settings_that_do_not_bear_on_the_weights_may_change(tmp_path: Path) -> None:
    other = Stage1Config(
        table="t",
        checkpoints=CheckpointConfig(every_steps=7, keep_best=3, storage=str(tmp_path)),
        workers=WorkersConfig(
            num_workers=4,
            use_gpu=True,
            zero_stage=3,
            offload_optimizer=True,
            offload_weights=True,
            threads=2,
            image_cache_mb=0,
            max_failures=9,
        ),
        batch=BatchConfig(tokens_per_device=512, prefetch_steps=0),
    )
    here = Plan.from_config(Stage1Config(table="t"), tmp_path).identity()
    refuse_other_settings("runs/x", Plan.from_config(other, tmp_path / "moved").identity(), here)


def test_a_base_that_is_no_internvl_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(CheckpointError, match="InternVL.*qwen2_vl"):
        Plan.from_config(Stage1Config(table="t", base=str(tmp_path)), tmp_path)
