"""The `ureca` command."""

import subprocess
import sys


def ureca(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ureca.cli.main", *arguments], capture_output=True, text=True)


def test_help_names_every_subcommand():
    done = ureca("--help")
    assert done.returncode == 0
    assert "ureca doctor" in done.stdout
    assert "ureca caption PHOTO" in done.stdout
    assert "ureca view TABLE" in done.stdout
    assert "ureca convert IN OUT" in done.stdout
    assert "ureca plan" in done.stdout
    assert "ureca serve" in done.stdout
    assert ureca().stdout == done.stdout


def test_an_unknown_subcommand_ends_with_code_2_and_one_line():
    done = ureca("train")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ureca train: ")
    assert done.stderr.count("\n") == 1
    for name in ("doctor", "caption", "view", "convert", "plan", "serve", "token"):
        assert name in done.stderr
