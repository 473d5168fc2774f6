"""Imports go one way, and light modules stay light."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "platform" / "ureca"


# Each layer may import those above it. Parts in one row don't import each other.
LAYERS = (
    "errors torchvision_ops",
    "storage hardware devices",
    "config",
    "runs cluster",
    "regions",
    "attributes corpus",
    "proposals",
    "model",
    "engine",
    "client evaluation",
    "viewer",
    "pipeline",
    "labeling captioning",
    "training serving",
    "nano",
    "demo cli",
    "__main__",
)
LAYER_OF = {name: depth for depth, row in enumerate(LAYERS) for name in row.split()}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("ureca", "torch ray vllm deepspeed numpy pyarrow"),
        ("ureca.cli.main", "torch ray vllm deepspeed numpy pyarrow"),
        ("ureca.cli.plan", "torch ray vllm deepspeed"),
        ("ureca.devices", "torch ray vllm deepspeed numpy pyarrow yaml"),
        ("ureca.hardware", "torch ray vllm deepspeed numpy pyarrow yaml"),
        ("ureca.cli.doctor", "torch ray vllm deepspeed numpy pyarrow yaml"),
        ("ureca.runs", "torch ray"),
        ("ureca.regions.tree", "torch ray"),
        ("ureca.attributes.measure", "torch ray"),
        ("ureca.nano.scenes", "torch ray"),
        ("ureca.corpus.table", "torch ray"),
        ("ureca.corpus.sources.parse", "torch ray"),
        ("ureca.proposals.proposer", "torch ray transformers"),
        ("ureca.viewer.gallery", "torch ray"),
        ("ureca.model.exporting.export", "ray vllm deepspeed"),
        ("ureca.engine.engine", "vllm ray"),
        ("ureca.serving.api.app", "torch ray vllm deepspeed"),
        ("ureca.serving.settings", "torch ray vllm deepspeed"),
        ("ureca.client.client", "torch ray"),
        ("ureca.evaluation.evaluate", "ray deepspeed vllm ureca.training ureca.labeling"),
    ],
)
def test_import_stays_light(module, forbidden, pulled_in):
    heavy = pulled_in(module, with_torch="torch" not in forbidden.split()) & set(forbidden.split())
    assert not heavy, f"`import {module}` pulls in {' '.join(heavy)}"


# Forks for each line of its input; the child imports that module and prints the names of all modules loaded.
FORKING_IMPORTER = """
import importlib, os, sys
if sys.argv[1:]:
    importlib.import_module(sys.argv[1])
for line in sys.stdin:
    if os.fork() == 0:
        importlib.import_module(line.strip())
        print(*sys.modules, flush=True)
        os._exit(0)
    if os.wait()[1] != 0:
        print("failed", flush=True)
"""


@pytest.fixture(scope="module")
def pulled_in() -> Iterator[Callable[..., set[str]]]:
    """Return the modules loaded by `import NAME` in a fresh process.

    A process with torch and transformers loaded serves the names for which these are allowed: importing them takes
    seconds each time.
    """
    importers: dict[bool, subprocess.Popen[str]] = {}

    def loaded(module: str, *, with_torch: bool) -> set[str]:
        if with_torch not in importers:
            command = [sys.executable, "-c", FORKING_IMPORTER, *(["ureca.model"] if with_torch else [])]
            importers[with_torch] = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        importer = importers[with_torch]
        print(module, file=importer.stdin, flush=True)
        names = set(importer.stdout.readline().split())
        assert module in names, f"`import {module}` failed: see standard error"
        return names

    yield loaded
    for importer in importers.values():
        importer.communicate(timeout=10)


def module_name(file: Path) -> str:
    """Return the dotted name of a file of the package; a folder's `__init__` has the folder's name."""
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imported_modules(file: Path) -> set[str]:
    """Return the modules of the package that a file imports, at its top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                modules.add(full if full in FILES else str(node.module))
    return modules & set(FILES) - {"ureca"}


def part_of(module: str) -> str:
    """Return the part below `ureca` that a module belongs to."""
    return module.split(".")[1]


def upward_imports(modules: Iterable[str]) -> list[str]:
    """List the imports of these modules that go to a part of their own layer or a later one."""
    return [
        f"{module} imports {other}"
        for module in modules
        for other in sorted(imported_modules(FILES[module]))
        if part_of(other) != part_of(module) and LAYER_OF[part_of(other)] >= LAYER_OF[part_of(module)]
    ]


def import_cycle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return one cycle of imports, or an empty list."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in finished:
            for other in sorted(imports[module]):
                if cycle := visit(other, [*path, module]):
                    return cycle
            finished.add(module)
        return []

    return next((cycle for module in imports if (cycle := visit(module, []))), [])


def test_imports_go_one_way():
    modules = sorted(set(FILES) - {"ureca"})
    unknown = {part_of(module) for module in modules} - set(LAYER_OF)
    assert not unknown, f"add {unknown} to LAYERS"
    assert upward_imports(modules) == []


def test_modules_import_each_other_without_a_cycle():
    assert import_cycle({module: imported_modules(file) - {module} for module, file in FILES.items()}) == []


def test_upward_import_is_found(monkeypatch):
    monkeypatch.setitem(LAYER_OF, "errors", len(LAYERS))
    assert "ureca.storage.files imports ureca.errors" in upward_imports(["ureca.storage.files"])


def test_import_cycle_is_found():
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert import_cycle(imports) == ["b", "c", "b"]


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
    with pytest.raises(AttributeError, match="'ureca'.*'captioner'"):
        ureca.captioner  # noqa: B018
