"""Without a usable Ray, one line says so."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RAY_TMPDIR", 120 * "x", "started"),
        ("RAY_ADDRESS", "no address", "RAY_ADDRESS=no"),
    ],
)
def test_a_ray_that_can_t_be_had_is_one_clear_line(variable, value, said, tmp_path):
    program = "from ureca.cluster import connect; from ureca.runs import run_job; run_job(connect)"
    environment = {"PATH": "", "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0", variable: value}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
