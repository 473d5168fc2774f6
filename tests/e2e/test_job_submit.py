"""`ray job submit` against a cluster whose Python has every dependency but not this package."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.paths import ROOT

TINY = [
    "--batch.images_per_step=2",
    "--batch.regions_per_image=2",
    "--optimizer.epochs=0.5",
    "--workers.num_workers=1",
]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that sees this one's dependencies, but not its editable install of the package.

    A .pth file adds the folder; .pth files inside that folder, such as the editable install's, are not read.
    """
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@dataclass(frozen=True)
class Cluster:
    python: Path
    dashboard: str
    environment: dict[str, str]

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(self.python),
            "-m",
            "ray.scripts.scripts",
            "job",
            "submit",
            "--address",
            self.dashboard,
        ]
        return subprocess.run(
            [*command, "--working-dir", ".", "--", *entrypoint],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )


@pytest.fixture(scope="module")
def bare_cluster(bare_python: Path) -> Iterator[Cluster]:
    """A cluster of one machine, started with `ray start` from the bare environment."""
    port, dashboard, agent, agent_grpc, client = free_ports(5)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS", "VIRTUAL_ENV")}
    environment["PATH"] = f"{bare_python.parent}{os.pathsep}{environment['PATH']}"
    # Unix sockets in it: the path must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "start.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [
                    *(str(bare_python), "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                    *("--temp-dir", f"{folder}/ray", "--num-cpus=4", "--node-ip-address=127.0.0.1"),
                    *(
                        f"--port={port}",
                        f"--dashboard-port={dashboard}",
                        f"--ray-client-server-port={client}",
                    ),
                    f"--dashboard-agent-listen-port={agent}",
                    f"--dashboard-agent-grpc-port={agent_grpc}",
                ],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for_jobs_api(address, process, log)
            yield Cluster(bare_python, address, environment)
        finally:
            process.terminate()  # `ray start --block` ends its children, then itself
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_jobs_api(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(f"`ray start` did not come up:\n{log.read_text()}")


@pytest.mark.slow
def test_both_forms_of_a_submitted_job_train_where_the_package_is_not_installed(
    bare_cluster: Cluster, region_table: Path, tiny_base: Path, tmp_path: Path
) -> None:
    imported = subprocess.run(
        [str(bare_cluster.python), "-c", "import ray, torch, ureca"],
        cwd=tmp_path,
        env=bare_cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'ureca'" in imported.stderr

    common = [f"--table={region_table}", f"--base={tiny_base}", *TINY]
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    first = bare_cluster.submit("python", "jobs/train_stage1.py", *common, f"--run_directory={stage1}")
    assert first.returncode == 0, first.stdout + first.stderr
    assert (stage1 / "model" / "mask_encoder.safetensors").is_file()

    second = bare_cluster.submit(
        "jobs/train_stage2.py", *common, f"--init={stage1 / 'model'}", f"--run_directory={stage2}"
    )
    assert second.returncode == 0, second.stdout + second.stderr
    assert (stage2 / "model" / "adapter" / "adapter_model.safetensors").is_file()
    assert (stage2 / "summary.json").is_file()


@pytest.mark.slow
def test_a_submitted_job_fails_with_its_error(bare_cluster: Cluster, tmp_path: Path) -> None:
    failed = bare_cluster.submit("python", "jobs/train_stage1.py", f"--table={tmp_path}")
    assert failed.returncode != 0
    assert f"error: {tmp_path}: no parquet file in it" in failed.stdout + failed.stderr
