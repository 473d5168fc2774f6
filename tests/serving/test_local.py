"""`ureca serve`: what it reads and what it refuses before anything starts."""

import socket
from pathlib import Path

import pytest

from ureca.errors import CheckpointError, ConfigError, UrecaError
from ureca.serving.local import serve_locally

YAML = Path(__file__).parents[2] / "serve_apps" / "captioner.yaml"


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_port_that_is_none_or_taken_is_refused(taken_port):
    with pytest.raises(ConfigError, match="--port 70000: give a port from 1 to 65535"):
        serve_locally(["--port", "70000"])
    with pytest.raises(ConfigError, match=rf"--port {taken_port}: Address already in use\. Give another --port\."):
        serve_locally(["--port", str(taken_port)])


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no captioner_config\.json in it"):
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
    told = YAML.read_text().replace("export: null", f"export: {tmp_path}")
    yaml.write_text(told.replace("port: 8000", "port: 65431"))
    with pytest.raises(CheckpointError, match=r"no captioner_config\.json in it"):
        serve_locally([str(yaml)])


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("max_regions: 256", "max_region: 256", r"service\.yaml: limits\.max_region: Extra inputs are not permitted"),
        ("port: 8000", "port: [8000]", r"service\.yaml: http_options\.port: "),
        ("serve_apps.captioner:build", "other:app", r"applications \['other:app'\]; `ureca serve` runs one serve_apps"),
        ("route_prefix: /", "runtime_env: {working_dir: 's3://b/c.zip'}", r"runtime_env: not for `ureca serve`"),
        ("http_options:", "http_options: {", r"service\.yaml: not valid YAML"),
    ],
)
def test_a_yaml_that_can_t_be_honored_is_refused(tmp_path, written, instead, said):
    yaml = tmp_path / "service.yaml"
    assert YAML.read_text().count(written) == 1
    yaml.write_text(YAML.read_text().replace(written, instead))
    with pytest.raises(ConfigError, match=said):
        serve_locally([str(yaml)])


def test_a_yaml_that_is_none_or_contradicted_is_refused(tmp_path):
    with pytest.raises(UrecaError, match=r"nothing\.yaml: "):
        serve_locally([str(tmp_path / "nothing.yaml")])
    with pytest.raises(ConfigError, match=r"captioner\.yaml: says itself what the models are .* leave out --model"):
        serve_locally([str(YAML), "--model", "runs/export"])
