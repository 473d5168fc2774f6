"""Imports go one way, and light modules stay light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "platform" / "ureca"

# Each layer may import those above it. Names in one row don't import each other.
LAYERS = (
    "errors s3 machine fields torchvision_ops",
    "io accelerators",
    "config",
    "runs",
    "cluster",
    "regions",
    "attributes",
    "scenes corpus",
    "proposals viewer",
    "model",
    "engine",
    "labeling evaluation",
    "training serving",
    "captioning",
    "demo doctor caption sizing",
    "cli",
)
LAYER_OF = {name: depth for depth, row in enumerate(LAYERS) for name in row.split()}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("ureca", "torch ray vllm deepspeed numpy pyarrow"),
        ("ureca.cli.main", "torch ray vllm deepspeed numpy pyarrow"),
        ("ureca.cli.plan", "torch ray vllm deepspeed"),
        ("ureca.hardware", "torch ray vllm deepspeed numpy pyarrow yaml"),
        ("ureca.cli.doctor", "torch ray vllm deepspeed numpy pyarrow yaml"),
        ("ureca.runs", "torch ray"),
        ("ureca.regions", "torch ray"),
        ("ureca.attributes", "torch ray"),
        ("ureca.nano.scenes", "torch ray"),
        ("ureca.corpus", "torch ray"),
        ("ureca.proposals", "torch ray transformers"),
        ("ureca.viewer.gallery", "torch ray"),
        ("ureca.model", "ray vllm deepspeed"),
        ("ureca.engine", "vllm"),
        ("ureca.serving.api.app", "torch ray vllm deepspeed"),
        ("ureca.serving.settings", "torch ray vllm deepspeed"),
        ("ureca.evaluation", "ray deepspeed vllm ureca.training ureca.labeling"),
    ],
)
def test_import_stays_light(module, forbidden):
    code = f"import sys, {module}; print(*({set(forbidden.split())} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip(), f"`import {module}` pulls in {done.stdout.strip()}"


def imported_parts(file: Path) -> set[str]:
    """The top-level parts of ureca that a file imports, at its head or inside a function."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "ureca" and rest:
                parts.add(rest.split(".")[0])
    return parts & set(LAYER_OF)


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def crossings(files: list[Path]) -> list[str]:
    found = []
    for file in files:
        mine = part_of(file)
        for other in sorted(imported_parts(file) - {mine}):
            if LAYER_OF[other] >= LAYER_OF[mine]:
                found.append(f"{file.relative_to(PACKAGE)} imports {other}")
    return found


def test_imports_go_one_way():
    files = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py"]
    unknown = {part_of(file) for file in files} - set(LAYER_OF)
    assert not unknown, f"say in LAYERS where {unknown} stands"
    assert not crossings(files)


def test_a_crossing_is_noticed(monkeypatch):
    monkeypatch.setitem(LAYER_OF, "errors", len(LAYERS))
    assert "io.py imports errors" in crossings([PACKAGE / "io.py"])


def test_platform_stays_the_standard_library_s():
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform; print(platform.system(), platform.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert str(ROOT) not in done.stdout


def test_public_names_are_there():
    import ureca

    for name in ureca.__all__:
        assert getattr(ureca, name).__name__ == name
    with pytest.raises(AttributeError, match=r"module 'ureca' has no attribute 'captioner'\. It has: Captioner"):
        ureca.captioner  # noqa: B018
