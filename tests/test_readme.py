"""The README says what holds: its Python runs; the jobs, options, targets and files it names are there."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from support.job_configs import config_class
from support.paths import JOBS, ROOT

from ureca.config import load_config

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
JOB_ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)$", README, re.MULTILINE))


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.splitlines()[0])
def test_python_blocks_run_and_print(block, tmp_path):
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_job_has_its_row_and_every_row_its_job():
    jobs = {path.stem for path in JOBS.glob("*.py")} - {"bootstrap"}
    assert set(JOB_ROWS) == jobs


@pytest.mark.parametrize("job", sorted(JOB_ROWS))
def test_options_in_the_table_exist(job):
    cls = config_class(job)
    for option in re.findall(r"--([\w.]+)", JOB_ROWS[job]):
        here = cls
        for name in option.split("."):
            fields = typing.get_type_hints(here) if dataclasses.is_dataclass(here) else {}
            assert name in fields, f"{job} has no option --{option}"
            either = typing.get_args(fields[name]) or (fields[name],)  # SECTION | None: off unless it is given
            here = next((kind for kind in either if dataclasses.is_dataclass(kind)), fields[name])


def test_commands_in_the_readme_name_targets_recipes_and_subcommands_that_exist():
    from ureca.cli import main as cli

    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)\b(?!=)", README)) <= targets
    recipes = {path.stem for path in (JOBS / "configs").glob("*.yaml")}
    assert set(re.findall(r"--config (\w+)", README)) <= recipes
    assert set(re.findall(r"jobs/(\w+)\.py", README)) <= {path.stem for path in JOBS.glob("*.py")}
    assert cli.__doc__ is not None
    for subcommand in set(re.findall(r"(?:^|`|bin/)ureca ([a-z]+)\b", README, re.MULTILINE)):
        assert f"ureca {subcommand}" in cli.__doc__, subcommand


def files_of(job: str, config: typing.Any) -> tuple[set[str], set[str]]:
    """Return the paths that a job reads and writes below runs/, by its configuration."""
    inputs = ("table", "init", "stage1", "stage2", "stage3", "tuned_none", "tuned_box", "model", "scores")
    if job == "label_corpus":
        return set(), {config.table or "runs/label_corpus/regions.parquet"}
    if job.startswith("train_"):
        written = {f"{config.run_directory or f'runs/{job}'}/model"}
    else:
        written = {config.output} if hasattr(config, "output") else set()
    return {getattr(config, name) for name in inputs if getattr(config, name, "")}, written


def test_the_quick_path_names_only_what_an_earlier_command_wrote():
    section = README.partition("## From your photos to your captioner")[2]
    block = re.search(r"(?:^    .*\n)+", section, re.MULTILINE)
    assert block
    commands = [shlex.split(line) for line in block[0].splitlines()]
    written: set[str] = set()
    for program, script, *arguments in commands:
        if program == "make":
            assert arguments[0].removeprefix("MODEL=") in written, arguments
            continue
        job = Path(script).stem
        reads, writes = files_of(job, load_config(config_class(job), arguments))
        assert reads <= written, f"{script} names {sorted(reads - written)}, which no command before it makes"
        written |= writes
    assert written >= {"runs/train_stage1/model", "runs/train_stage2/model", "runs/export"}


def test_the_demo_ends_with_the_lines_that_the_readme_gives():
    job = ast.parse((JOBS / "demo.py").read_text())
    ending = next(
        ast.literal_eval(node.value)
        for node in job.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ENDING"
    )
    printed = ending.format(table="", report="", export="runs/demo/export", out="runs/demo")
    first = README.partition("and the lines to go on with:")[2]
    given = re.search(r"(?:^    .*\n)+", first, re.MULTILINE)
    assert given
    for line in given[0].splitlines():
        assert line.strip() in printed


@pytest.mark.parametrize(("text", "folder"), [(README, ROOT), (ARCHITECTURE, ROOT / "docs")], ids=["README", "docs"])
def test_linked_files_are_there(text, folder):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    missing = [link for link in links if not (folder / link).is_file()]
    assert not missing


def test_architecture_names_every_part():
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", ARCHITECTURE, re.MULTILINE))))
    files = (ROOT / "platform" / "ureca").iterdir()
    parts = {file.stem for file in files if file.suffix in ("", ".py") and file.name[0] not in "._"}
    assert parts - named == set()
