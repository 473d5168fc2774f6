"""Model directories whose export would be useless or wrong."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ureca.errors import CheckpointError
from ureca.model.captioner import Captioner
from ureca.model.exporting.export import export

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture
def model(tiny_base: Path, tmp_path: Path) -> Path:
    """Model directory of a stage 2 that took no step."""
    captioner = Captioner.from_base(str(tiny_base), tile_limit=1, tokens_per_tile=4)
    captioner.add_lora(rank=2, dropout=0.0)
    captioner.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_adapter(model: Path, names: dict[str, str] | None = None, **values: torch.Tensor) -> None:
    weights = load_file(model / ADAPTER)
    save_file({(names or {}).get(name, name): value for name, value in (weights | values).items()}, model / ADAPTER)


def test_export_untrained_adapter_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model: .*lora_B"):
        export(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    name = next(name for name in load_file(model / ADAPTER) if "lora_B" in name)
    change_adapter(model, **{name: torch.ones_like(load_file(model / ADAPTER)[name])})
    export(model, tmp_path / "export")


def test_export_renamed_adapter_weight_is_refused(model: Path, tmp_path: Path) -> None:
    name = next(name for name in load_file(model / ADAPTER) if "lora_B" in name)
    change_adapter(model, {name: name.replace("lora_B", "lora_C")})
    with pytest.raises(CheckpointError, match=r"adapter: .*lora_[BC]"):
        export(model, tmp_path / "export")


def test_export_weight_that_is_not_finite_is_refused(model: Path, tmp_path: Path) -> None:
    name = next(name for name in load_file(model / ADAPTER) if "lora_A" in name)
    change_adapter(model, **{name: torch.full_like(load_file(model / ADAPTER)[name], torch.nan)})
    with pytest.raises(CheckpointError, match=r"lora_A.*finite"):
        export(model, tmp_path / "export")
