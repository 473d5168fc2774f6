"""Nano's recipe on a base of a few thousand weights: four models for a seed, made once, several seeds at once."""

import io
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ureca.config import find_config, read_config
from ureca.errors import CheckpointError, ConfigError
from ureca.model.captioner import CaptionerConfig
from ureca.nano import recipe as recipe_module
from ureca.nano.recipe import NanoRecipeConfig, Prefixed, sendable, stage_config, train_seed, train_seeds
from ureca.training.config import Stage2Config
from ureca.training.monitor.metrics import read_metrics


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
    region_table: Path, tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One seed is trained while another fails, each in a separate process with a separate Ray."""
    config = NanoRecipeConfig(**recipes(tmp_path, tiny_base), seeds=(4, 3), seeds_at_once=2)
    damaged = tmp_path / "seed4" / "stage1" / "checkpoints" / "checkpoint_00000001_cut"
    damaged.mkdir(parents=True)
    (damaged / "record.json").write_text("{")
    of_seeds, failed = train_seeds(config, table=str(region_table), output=tmp_path)
    assert (list(of_seeds), list(failed)) == ([3], [4])
    assert isinstance(failed[4], CheckpointError)
    assert "checkpoints are damaged" in str(failed[4])
    assert "seed3  train  step 1/1" in capfd.readouterr().err
    trained, output = of_seeds[3], tmp_path / "seed3"
    assert list(trained) == ["stage1", "stage2", "tuned_none", "tuned_box"]
    regions = {(result.steps, result.regions, result.images) for result in trained.values()}
    assert regions == {(1, 16, 7)}, "all on the same regions of the same images"
    first = {name: read_metrics(output / name / "metrics.jsonl")[0]["loss"] for name in trained}
    assert len(set(first.values())) == 4, "each differs in region cue or initial weights"
    for name, result in trained.items():
        assert CaptionerConfig.load(Path(result.model)).base == str(tiny_base)
        assert (Path(result.model) / "adapter").is_dir() == (name != "stage1")
    again = train_seed(config, 3, table=str(region_table), output=output)
    assert again == trained
    assert capfd.readouterr().err.count("exists already") == 4


def fits(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of trainings: the stages' configurations, by the names of their folders."""
    configs: dict[str, Any] = {}

    def fit(config: Any, directory: Path) -> SimpleNamespace:
        configs[directory.name] = config
        return SimpleNamespace(model=str(directory / "model"))

    patch.setattr(recipe_module, "fit", fit)
    return configs


@pytest.mark.parametrize("own", [True, False])
def test_a_base_of_one_s_own_goes_to_every_stage(own: bool, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = fits(monkeypatch)
    train_seed(NanoRecipeConfig(base=str(tiny_base) if own else ""), 2, table="t", output=Path("seed2"))
    assert list(configs) == ["stage1", "stage2", "tuned_none", "tuned_box"]
    assert {each.base for each in configs.values()} == {str(tiny_base) if own else None}
    assert {(each.table, each.seed, each.heldout) for each in configs.values()} == {("t", 2, 0.0)}


def test_a_seed_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: NanoRecipeConfig, seed: int, *, table: str, output: Path) -> str:  # noqa: ARG001
        if seed == 0:
            raise CheckpointError("seed0: damaged")
        return str(output)

    monkeypatch.setattr(recipe_module, "train_seed", train)
    trained, failed = train_seeds(NanoRecipeConfig(seeds=(2, 0, 1)), table="t", output=Path("runs"))
    assert trained == {2: "runs/seed2", 1: "runs/seed1"}
    assert [(seed, str(error)) for seed, error in failed.items()] == [(0, "seed0: damaged")]


@pytest.mark.slow
def test_errors_of_seeds_at_once_arrive_as_they_are(tmp_path: Path) -> None:
    config = NanoRecipeConfig(seeds=(0, 1), seeds_at_once=2, stage1="no_such_recipe")
    trained, failed = train_seeds(config, table="t", output=tmp_path)
    assert not trained
    assert {seed: type(error) for seed, error in failed.items()} == {0: ConfigError, 1: ConfigError}
    assert "no_such_recipe: no such file" in str(failed[1])


class TwoPartsError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")


def test_an_error_that_another_process_can_not_read_is_told_in_words() -> None:
    error = ConfigError("scenes=0")
    assert sendable(error) is error
    received = sendable(TwoPartsError("worker 1", "died"))
    assert str(pickle.loads(pickle.dumps(received))) == "TwoPartsError: worker 1 died"


def test_every_whole_line_of_a_seed_begins_with_its_name() -> None:
    stream = io.StringIO()
    print("step 1\nstep 2", file=Prefixed(stream, "seed7  "))
    print("step", end=" ", file=(received := Prefixed(stream, "seed8  ")))
    print("3", file=received)
    assert stream.getvalue() == "seed7  step 1\nseed7  step 2\nseed8  step 3\n"
    assert Prefixed(sys.__stderr__, "").fileno() == sys.__stderr__.fileno()  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seeds": (1, 1)}, r"seeds=\[1, 1\]"),
        ({"scenes": 0}, "scenes=0"),
        ({"seeds_at_once": 0}, "seeds_at_once=0:.*1"),
        (
            {"base": "runs/nowhere"},
            r"base=runs/nowhere:.*config\.json.*jobs/pretrain_nano",
        ),
    ],
)
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
