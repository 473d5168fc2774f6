"""Configuration: precedence, types, errors, help, and every shipped recipe."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from support.job_configs import config_class
from support.paths import JOBS

from ureca.config import config_from_dict, config_to_dict, field_docs, flatten, load_config, read_config, save_config
from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    data: Path
    """Region table to train on."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    dtype: Literal["float32", "bfloat16"] = "float32"
    names: list[str] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    resume: bool = True
    storage: str | None = None
    note: Any = None
    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps}: at least one step is needed")


def load(*argv: str) -> TrainConfig:
    return load_config(TrainConfig, ["--data=x", *argv])


def test_load_config_arguments_override_file_and_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("data: table.parquet\nsteps: 5\noptimizer: {warmup_steps: 7}\n")
    config = load_config(TrainConfig, ["--config", str(file), "--steps=6", "--steps", "8"])
    assert config.data == Path("table.parquet")
    assert config.steps == 8
    # A partial section keeps the other values of the field's default, not of its class's.
    assert config.optimizer == OptimizerConfig(learning_rate=2e-4, warmup_steps=7)


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("--optimizer.learning_rate=1e-5", "optimizer.learning_rate", 1e-5),
        ("--optimizer.betas=0.8,0.9", "optimizer.betas", (0.8, 0.9)),
        ("--optimizer.betas=[0.8, 0.9]", "optimizer.betas", (0.8, 0.9)),
        ("--optimizer.warmup_steps=3", "optimizer.warmup_steps", 3),
        ("--optimizer.warmup_steps=null", "optimizer.warmup_steps", None),
        ("--steps=1e3", "steps", 1000),
        ("--steps=16_384", "steps", 16384),
        ("--dtype=bfloat16", "dtype", "bfloat16"),
        ("--names=a, b", "names", ["a", "b"]),
        ("--names=", "names", []),
        ("--shares={a: 0.5}", "shares", {"a": 0.5}),
        ("--resume=false", "resume", False),
        ("--storage=1", "storage", "1"),
        ("--storage=none", "storage", None),
        ("--note=[1, x]", "note", [1, "x"]),
    ],
)
def test_command_line_value_gets_the_field_type(argument, key, value):
    result: Any = load(argument)
    for name in key.split("."):
        result = getattr(result, name)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stesp=1"], r"^command line: .*'stesp'.* steps\?"),
        (["--optimizer.lr=1"], r"^command line: .*'optimizer\.lr'.*: learning_rate, betas, warmup_steps\."),
        (["--steps.more=1"], r"^command line: .*--steps\.more: steps .*--steps\b"),
        (["--steps=1.5"], r"^command line: .*steps=1\.5: .*\bint\b.*'1\.5'"),
        (["--steps=0"], "steps=0"),
        (["--resume=maybe"], r"^command line: .*resume=maybe: .*\bbool\b.*'maybe'"),
        (["--dtype=float64"], r"^command line: .*dtype=float64: .*bfloat16 or float32\?"),
        (["--optimizer.betas=1"], r"^command line: .*optimizer\.betas=1: .*\b2 values.*\b1\b"),
        (["--optimizer=7"], "^command line: optimizer .*section.* 7"),
        (["--optimizer.warmup_steps=x"], r"^command line: .*optimizer\.warmup_steps=x: .*\bint\b.*'x'"),
        (["--steps"], "--steps: .*--steps=VALUE"),
        (["steps=1"], "'steps=1': .*--help"),
    ],
)
def test_invalid_argument_is_refused(argv, message):
    with pytest.raises(ConfigError, match=message):
        load(*argv)


def test_missing_value_error_names_the_option():
    with pytest.raises(ConfigError, match="--data=VALUE"):
        load_config(TrainConfig, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: 5\n", "data=5"),
        ("data: x\nresume: 1\n", "resume=1"),
        ("data: x\nsteps: true\n", "steps=True"),
        ("data: x\noptimizer: {beta: 1}\n", "'optimizer.beta'"),
        ("data: x\nnames: word\n", "names=word"),
        ("- data\n", "configuration"),
        ("data: [\n", "YAML"),
    ],
)
def test_invalid_file_error_names_the_file(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(TrainConfig, ["--config", str(file)])
    assert str(refused.value).startswith(str(file))
    assert message in str(refused.value)


def test_unknown_config_file_is_refused():
    with pytest.raises(ConfigError, match="^--config no_such_recipe"):
        load_config(TrainConfig, ["--config=no_such_recipe"])


def test_saved_config_loads_back_equal(tmp_path):
    config = load("--optimizer.betas=0.1,0.2", "--names=a,b", "--optimizer.warmup_steps=4", "--storage=7")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(TrainConfig, [f"--config={tmp_path / 'config.yaml'}"]) == config
    assert config_from_dict(TrainConfig, config_to_dict(config), where="test") == config


def test_help_shows_docstring_type_and_effective_default(capsys):
    with pytest.raises(SystemExit) as ended:
        load_config(TrainConfig, ["--help"], description="Train it.")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("Train it.\n")
    assert "--data  path, required\n      Region table to train on.\n" in text
    assert "--optimizer.learning_rate  float, default 0.0002\n      Peak learning rate.\n" in text
    assert "--dtype  float32|bfloat16, default float32\n" in text
    assert "--storage  str or null, default null\n" in text


def test_field_docs_include_base_class():
    @dataclass(frozen=True, kw_only=True)
    class Tuned(OptimizerConfig):
        decay: float = 0.0
        """Weight decay."""

    assert field_docs(Tuned) == {"learning_rate": "Peak learning rate.", "decay": "Weight decay."}


def test_flatten_joins_nested_keys_and_keeps_empty_sections():
    nested = {"a": {"b": 1, "c": {"d": [2], "e": {}}}, "f": None}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [2], "a.c.e": {}, "f": None}


CONFIGS = JOBS / "configs"


def job_of(file: Path) -> str:
    """Return the job in a recipe's head comment: `python jobs/<job>.py --config …`."""
    head = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    named = re.search(r"python jobs/(\w+)\.py", head)
    assert named, f"{file.name}: its head comment must give the command `python jobs/<job>.py --config …`"
    return named[1]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipe_loads(file):
    cls = config_class(job_of(file))
    assert dataclasses.is_dataclass(cls)
    config_from_dict(cls, read_config(file), where=file.name)


def test_recipes_exist():
    assert list(CONFIGS.glob("*.yaml"))
