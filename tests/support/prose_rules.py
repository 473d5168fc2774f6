"""Rules for prose and layout that a script can check.

    python tests/support/prose_rules.py [PATH ...]     print every violation below PATH (default: the checkout)

Covers docstrings, comments, messages, documentation and pages; docs/contributing.md has the rules in words.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "platform" / "ureca"

MAX_MODULES = 14
"""Modules in one folder of the package, `__init__` excluded."""
MAX_CELL = 100
"""Characters of a Markdown table cell."""

NOUN_CLAUSE = re.compile(r"(What|That|Of|How|Whether|Where)\b")
"""First words of a docstring that is a clause instead of a command or a noun phrase."""

BANNED = {
    "beside": r"beside",
    "anew": r"anew",
    "whence": r"whence",
    "told, tell (except 'tell apart', 'can't tell')": r"(?<!not )(?<!n't )(told|tells?|telling)\b(?!.{0,40}\bapart\b)",
    "under way": r"under way",
    "set aside": r"(sets?|setting) aside",
    "for ever": r"for ever",
    "mend": r"mend(s|ed|ing)?",
    "dear": r"dear(er)?",
    "so many": r"so many",
    "as it is": r"as it is",
    "take up": r"(takes?|taken|taking|took) up",
    "goes on where it was": r"(go|goes|going|went) on where",
    "made of": r"made of",
    "comes of": r"(come|comes|came) of",
    "has it that": r"has it that",
    "a half": r"a half",
    "of its own": r"of its own",
    "be it": r"be it",
}
_BANNED = {name: re.compile(rf"\b{pattern}\b", re.IGNORECASE) for name, pattern in BANNED.items()}

_TEXT_SUFFIXES = {".py", ".md", ".yaml", ".toml", ".html", ".js", ".css", ".txt"}
_TEXT_NAMES = {"Makefile", "run"}
_ALLOWED = {
    "platform/ureca/labeling/describers/answers.py": {"beside", "told, tell (except 'tell apart', 'can't tell')"},
    "platform/ureca/nano/pretrain_questions.py": {"beside"},
    "platform/ureca/attributes/wording.py": {"beside"},
}
"""File -> banned words that its code needs."""
_EXEMPT = {
    "tests/support/prose_rules.py",  # holds the words themselves
    "tests/test_prose.py",
}


def checked_files() -> list[Path]:
    """Text files of the checkout, tracked or new, without model weights and licenses."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [
        ROOT / name
        for name in listed
        if name not in _EXEMPT
        and "/weights/" not in name
        and "/prompt_texts/" not in name  # written for models
        and (Path(name).suffix in _TEXT_SUFFIXES or Path(name).name in _TEXT_NAMES)
        and (ROOT / name).is_file()
    ]


def noun_clauses(path: Path) -> Iterator[str]:
    """Docstrings of a Python file that begin with a clause, attribute docstrings included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first = node.value.value.strip().split("\n")[0]
            if NOUN_CLAUSE.match(first):
                yield f"{_name(path)}:{node.lineno}: docstring begins with a clause: {first[:60]!r}"


def banned_words(path: Path) -> Iterator[str]:
    """Lines that hold a banned word; a word split by a line break is found too."""
    text = path.read_text(encoding="utf-8")
    joined = re.sub(r"\n[ \t]*(#[ \t]*)?", lambda match: " " * len(match[0]), text)
    for name, pattern in _BANNED.items():
        if name in _ALLOWED.get(_name(path), ()):
            continue
        for match in pattern.finditer(joined if " " in name else text):
            yield f"{_name(path)}:{text.count(chr(10), 0, match.start()) + 1}: banned: {name}"


def long_cells(path: Path) -> Iterator[str]:
    """Table cells of a Markdown file that are too long."""
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        is_code ^= line.startswith("```")
        if line.startswith("|") and not is_code:
            for cell in line.strip().strip("|").split("|"):
                if len(cell.strip()) > MAX_CELL:
                    yield f"{_name(path)}:{number}: table cell of {len(cell.strip())} characters"


def crowded_folders(package: Path = PACKAGE) -> Iterator[str]:
    """Folders of the package with too many modules."""
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        modules = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
        if len(modules) > MAX_MODULES:
            yield f"{folder.name}: {len(modules)} modules"


def internal_exports(path: Path) -> Iterator[str]:
    """An `__all__` anywhere but in the package's own `__init__.py`."""
    if path != PACKAGE / "__init__.py" and re.search(r"^__all__\b", path.read_text(encoding="utf-8"), re.MULTILINE):
        yield f"{_name(path)}: internal __all__"


def violations(paths: list[Path]) -> list[str]:
    """All violations in these files."""
    found: list[str] = []
    for path in paths:
        found += banned_words(path)
        if path.suffix == ".py":
            found += noun_clauses(path)
            found += internal_exports(path)
        if path.suffix == ".md":
            found += long_cells(path)
    return found


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main() -> None:
    """Print the violations below the paths named on the command line."""
    below = [Path(argument).resolve() for argument in sys.argv[1:]] or [ROOT]
    files = [path for path in checked_files() if any(path == each or each in path.parents for each in below)]
    found = [*violations(files), *crowded_folders()]
    print("\n".join([*found, f"{len(found)} violations in {len(files)} files"]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
