"""Layout and prose stay readable: each rule holds for the checkout, and each rule can fail."""

import pytest
from support import prose_rules
from support.prose_rules import PACKAGE, ROOT, checked_files, violations


def test_checkout_follows_the_rules():
    files = checked_files()
    assert ROOT / "README.md" in files
    assert PACKAGE / "errors.py" in files
    assert violations(files) == []


def test_folders_hold_few_modules():
    assert list(prose_rules.crowded_folders()) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.py", '"""What it does."""\n', "a.py:1"),
        ("a.py", 'class A:\n    size: int\n    """Of the image."""\n', "a.py:3"),
        ("a.py", "# starts\n# anew\n", "a.py:2"),
        ("a.md", "is under\nway", "a.md:1"),
        ("a.py", '__all__ = ["a"]\n', "__all__"),
        ("a.md", f"| {'x' * 101} | y |\n", "a.md:1"),
    ],
)
def test_violation_is_found(tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    (violation,) = violations([tmp_path / name])
    assert found in violation


def test_allowed_text_passes(tmp_path):
    (tmp_path / "a.py").write_text('"""Tell two regions apart by their captions."""\n')
    (tmp_path / "a.md").write_text(f"```\n| {'x' * 101} |\n```\n")
    assert violations([tmp_path / "a.py", tmp_path / "a.md"]) == []


def test_crowded_folder_is_found(tmp_path):
    for number in range(prose_rules.MAX_MODULES + 1):
        (tmp_path / f"m{number}.py").touch()
    assert list(prose_rules.crowded_folders(tmp_path)) == [f"{tmp_path.name}: 15 modules"]
