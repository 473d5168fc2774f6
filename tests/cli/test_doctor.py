"""`ureca doctor`, against real conditions where a test can make them."""

import os
import socket
import subprocess
import sys

import pytest
from support.paths import ROOT

from ureca.cli import doctor

PLATFORM = ROOT / "platform"


def run_doctor(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-m", "ureca.cli.main", "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PLATFORM)},
    )


def test_here_all_that_is_needed_is_there():
    done = run_doctor()
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "all requirements are met"
    for name in ("Python", "packages", "torch", "GPUs", "vLLM", "Java", "port 8000", "disk", "/dev/shm"):
        assert f"  {name} " in done.stdout


def test_without_any_package_it_still_reports_and_ends_with_1():
    done = run_doctor("-S")  # no site-packages
    assert done.returncode == 1
    assert done.stderr == ""
    assert "missing  torch        not installed\n" in done.stdout
    assert "-> make setup\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "4 missing"


def test_versions_are_compared_with_the_lock(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# torch==1\npytest==0.0.1\nno-such-package==1\n")
    finding = doctor.packages(lock)
    assert finding.state == "missing"
    assert finding.found.startswith("not as in requirements.lock: pytest ")
    assert finding.found.endswith(" instead of 0.0.1; missing: no-such-package")
    assert finding.remedy == "make clean setup"
    lock.write_text(f"pytest=={pytest.__version__}\n")
    assert doctor.packages(lock) == doctor.Finding("packages", "ok", "all 1 as in requirements.lock")
    assert doctor.packages(tmp_path / "none.lock").state == "note"


def test_a_taken_port_is_named_with_who_wants_it():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        number = server.getsockname()[1]
        finding = doctor.port(number, "make serve")
        assert (finding.state, finding.found) == ("note", "taken")
        assert "make serve" in finding.remedy
        assert f"(ss -ltnp | grep {number})" in finding.remedy
    assert doctor.port(number, "make serve").state == "ok"


def test_a_torch_that_does_not_load_names_the_cpu_build(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.torch_build()
    assert finding.state == "missing"
    assert "does not load: ImportError: libcudart.so.13" in finding.found
    assert "CPU build from PyTorch's own wheel index" in finding.remedy


@pytest.mark.parametrize(
    ("finding", "state", "remedy"),
    [
        (doctor.python_version((3, 12, 1), "Linux"), "missing", "PYTHON=python3.11"),
        (doctor.python_version((3, 11, 9), "Darwin"), "missing", "Linux container"),
        (doctor.gpus([], None), "note", "nano"),
        (doctor.gpus(["NVIDIA L4, 23034 MiB, 580.1"], None), "note", "LOCK=requirements-gpu.lock"),
        (doctor.gpus(["NVIDIA L4, 23034 MiB, 580.1"], "0.32.0"), "ok", ""),
        (doctor.disk(10**9), "missing", "5 GB"),
        (doctor.disk(10**11), "ok", ""),
        (doctor.shared_memory("/no/such/folder"), "note", "disk"),
        (doctor.ray_address("http://head:8265"), "note", "unset RAY_ADDRESS"),
        (doctor.ray_address(None), "ok", ""),
    ],
)
def test_each_finding_has_its_remedy(finding, state, remedy):
    assert finding.state == state
    assert remedy in finding.remedy
    assert bool(finding.remedy) == (state != "ok")
