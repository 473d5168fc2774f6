"""The README says what holds: its Python runs; the jobs, options, targets and files it names are there."""

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from job_configs import JOBS, config_class

ROOT = Path(__file__).parents[1]
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
    from ureca import cli

    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)\b(?!=)", README)) <= targets
    recipes = {path.stem for path in (JOBS / "configs").glob("*.yaml")}
    assert set(re.findall(r"--config (\w+)", README)) <= recipes
    assert set(re.findall(r"jobs/(\w+)\.py", README)) <= {path.stem for path in JOBS.glob("*.py")}
    assert cli.__doc__ is not None
    for subcommand in set(re.findall(r"(?:^|`|bin/)ureca ([a-z]+)\b", README, re.MULTILINE)):
        assert f"ureca {subcommand}" in cli.__doc__, subcommand


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
