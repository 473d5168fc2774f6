"""Nano's recipe on a base of a few thousand weights: four models for a seed, made once."""

from pathlib import Path

import pytest
import yaml

from ureca.config import find_config, read_config
from ureca.demo.recipe import NanoRecipeConfig, stage_config, train_seed
from ureca.errors import ConfigError
from ureca.model import CaptionerConfig
from ureca.training import Stage2Config
from ureca.training.metrics import read_metrics


def recipes(folder: Path, base: Path) -> dict[str, str]:
    """Settings of both stages, as short as they can be."""
    common = {
        "table": "taken from the recipe",
        "base": str(base),
        "batch": {"images_per_step": 7, "regions_per_image": 4},
        "optimizer": {"learning_rate": 1e-3, "epochs": 1},
        "workers": {"num_workers": 1},
    }
    second = {"init": "taken from the recipe", "lora": {"rank": 2, "dropout": 0.0}, "tune_mask_encoder": True}
    paths = {}
    for name, settings in {"stage1": common, "stage2": {**common, **second}}.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        paths[name] = str(path)
    return paths


@pytest.mark.slow
def test_a_seed_s_four_models_differ_in_what_they_are_told_and_are_made_once(
    ray_cluster: str,  # noqa: ARG001
    region_table: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = NanoRecipeConfig(**recipes(tmp_path, tiny_base))
    output = tmp_path / "seed3"
    trained = train_seed(config, 3, table=str(region_table), output=output)
    assert list(trained) == ["stage1", "stage2", "tuned_none", "tuned_box"]
    regions = {(result.steps, result.regions, result.images) for result in trained.values()}
    assert regions == {(1, 16, 7)}, "all on the same regions of the same images"
    first = {name: read_metrics(output / name / "metrics.jsonl")[0]["loss"] for name in trained}
    assert len(set(first.values())) == 4, "each is told something else of the regions, or starts from other weights"
    for name, result in trained.items():
        assert CaptionerConfig.load(Path(result.model)).base == str(tiny_base)
        assert (Path(result.model) / "adapter").is_dir() == (name != "stage1")
    capsys.readouterr()
    again = train_seed(config, 3, table=str(region_table), output=output)
    assert again == trained
    assert capsys.readouterr().err.count("is there already") == 4


@pytest.mark.parametrize(("wrong", "said"), [({"seeds": (1, 1)}, r"seeds=\[1, 1\]"), ({"scenes": 0}, "scenes=0")])
def test_what_cannot_work_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        NanoRecipeConfig(**wrong)  # type: ignore[arg-type]


def test_a_stage_s_settings_are_the_recipe_s_but_for_those_given() -> None:
    recipe = read_config(find_config(NanoRecipeConfig().stage2))
    config = stage_config(Stage2Config, "nano_stage2", epochs=0.25, table="t", init="", cue="box", seed=7)
    assert (config.table, config.init, config.cue, config.seed) == ("t", "", "box", 7)
    assert config.optimizer.epochs == 0.25
    assert config.optimizer.learning_rate == float(recipe["optimizer"]["learning_rate"])
    assert config.batch.images_per_step == recipe["batch"]["images_per_step"]
