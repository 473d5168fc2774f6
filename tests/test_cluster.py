"""Connecting to Ray: errors."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("RAY_TMPDIR", 120 * "x", "started"),
        ("RAY_ADDRESS", "no address", "RAY_ADDRESS=no"),
    ],
)
def test_connect_failure_exits_2_with_one_line(variable, value, expected, tmp_path):
    program = "from ureca.cluster import connect; from ureca.runs import run_job; run_job(connect)"
    environment = {"PATH": "", "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0", variable: value}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
