"""`ureca serve`: what it reads, what it refuses before anything starts, and how it ends."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.paths import SERVE_APPS
from support.serving_load import ask_once, drawn_questions, free_port

from ureca.cli import serve as serve_module
from ureca.cli.serve import parse_arguments, serve_locally
from ureca.client.client import Client
from ureca.errors import CheckpointError, ConfigError, UrecaError

YAML = SERVE_APPS / "captioner.yaml"


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_port_that_is_none_or_taken_is_refused(taken_port):
    with pytest.raises(ConfigError, match="--port 70000:.*1.*65535"):
        serve_locally(["--port", "70000"])
    with pytest.raises(ConfigError, match=rf"--port {taken_port}: Address already in use\. Set another --port\."):
        serve_locally(["--port", str(taken_port)])


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"captioner_config\.json"):
        serve_locally(["--model", str(tmp_path), "--port", "65431"])


def test_a_yaml_says_where_to_listen_and_the_command_line_may_say_otherwise(taken_port, tmp_path):
    yaml = tmp_path / "service.yaml"
    yaml.write_text(YAML.read_text().replace("port: 8000", f"port: {taken_port}"))
    with pytest.raises(ConfigError, match=rf"--host 127\.0\.0\.1 --port {taken_port}: Address already in use"):
        serve_locally([str(yaml)])
    with pytest.raises(ConfigError, match="--port 0"):
        serve_locally([str(yaml), "--port", "0"])


def test_a_yaml_says_what_is_served(tmp_path):
    yaml = tmp_path / "service.yaml"
    received = YAML.read_text().replace("export: null", f"export: {tmp_path}")
    yaml.write_text(received.replace("port: 8000", "port: 65431"))
    with pytest.raises(CheckpointError, match=r"captioner_config\.json"):
        serve_locally([str(yaml)])


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("max_regions: 256", "max_region: 256", r"service\.yaml: limits\.max_region"),
        ("port: 8000", "port: [8000]", r"service\.yaml: http_options\.port: "),
        ("serve_apps.captioner:build", "other:app", r"\['other:app'\];.*serve_apps"),
        ("route_prefix: /", "runtime_env: {working_dir: 's3://b/c.zip'}", "runtime_env"),
        ("http_options:", "http_options: {", r"service\.yaml:.*YAML"),
    ],
)
def test_a_yaml_that_can_t_be_honored_is_refused(tmp_path, written, instead, said):
    yaml = tmp_path / "service.yaml"
    assert YAML.read_text().count(written) == 1
    yaml.write_text(YAML.read_text().replace(written, instead))
    with pytest.raises(ConfigError, match=said):
        serve_locally([str(yaml)])


def test_a_yaml_that_is_none_is_refused(tmp_path):
    with pytest.raises(UrecaError, match=r"nothing\.yaml: "):
        serve_locally([str(tmp_path / "nothing.yaml")])


def test_another_model_takes_the_place_of_the_yaml_s_and_keeps_its_settings(tmp_path):
    yaml = tmp_path / "service.yaml"
    yaml.write_text(
        YAML.read_text().replace("max_regions: 256", "max_regions: 7").replace("num_cpus: 1", "num_cpus: 3")
    )
    service = parse_arguments([str(yaml), "--model", "runs/my_export", "--gpus", "2", "--port", "1"])
    assert service.settings.limits.max_regions == 7
    [(name, model)] = service.settings.models.items()
    assert (name, model.export, model.num_cpus, model.num_gpus) == ("my_export", "runs/my_export", 3, 2)
    assert model.engine.tensor_parallel_size == 2
    assert service.start["http_options"] == {"host": "127.0.0.1", "port": 1}


def test_serve_on_gpu_machine_reserves_gpu_per_model(monkeypatch):
    monkeypatch.setattr(serve_module, "installed_version", lambda name: "0.32.0" if name == "vllm" else None)
    monkeypatch.setattr(serve_module, "list_gpus", lambda: ["NVIDIA H200"])
    [model] = parse_arguments([]).settings.models.values()
    assert model.num_gpus == 1
    [model] = parse_arguments(["--gpus", "0.5"]).settings.models.values()
    assert (model.num_gpus, model.engine.tensor_parallel_size) == (0.5, 1)
    monkeypatch.setattr(serve_module, "list_gpus", list)
    [model] = parse_arguments([]).settings.models.values()
    assert model.num_gpus == 0


def test_a_cluster_is_not_served_from_here(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=10\.0\.0\.1:6379"):
        serve_locally([])


@pytest.mark.slow
def test_at_sigterm_what_was_asked_is_answered_and_what_is_asked_later_is_refused(tiny_export):
    """More requests than the engine takes at a time (8): some still wait in the ingress then."""
    port, questions = free_port(), drawn_questions(12, regions=6, max_tokens=250)
    url = f"http://127.0.0.1:{port}"
    command = [Path(sys.executable).parent / "ureca", "serve", "--model", tiny_export, "--port", str(port)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service,
        Client(url) as client,
        httpx.Client(base_url=url, timeout=300) as http_client,
        ThreadPoolExecutor(len(questions)) as pool,
    ):
        deadline = time.monotonic() + 180
        while not client.is_ready():
            assert service.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        asked = [pool.submit(ask_once, http_client, question) for question in questions]
        time.sleep(1)
        assert not any(each.done() for each in asked)
        service.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        late = ask_once(http_client, drawn_questions(1, regions=1, max_tokens=1)[0])
        still_running = sum(not each.done() for each in asked)
        answers = [each.result() for each in asked]
        said, _ = service.communicate(timeout=60)
    assert late == "refused"
    assert still_running > 0
    assert all(isinstance(answer, dict) and all(answer.values()) and len(answer) == 6 for answer in answers)
    assert service.returncode == 0
    assert "finishing requests in progress" in said
