"""`ureca serve`: what it refuses before anything starts."""

import socket

import pytest

from ureca.errors import CheckpointError, ConfigError
from ureca.serving.local import serve_locally


def test_a_port_that_is_none_or_taken_is_refused():
    with pytest.raises(ConfigError, match="--port 70000: give a port from 1 to 65535"):
        serve_locally(["--port", "70000"])
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: Address already in use\. Give another --port\."):
            serve_locally(["--port", str(port)])


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no captioner_config\.json in it"):
        serve_locally(["--model", str(tmp_path), "--port", "65431"])
