"""`ureca serve`: the captioner's HTTP API on this machine, from the package alone.

Ctrl-C and SIGTERM end it in order: new requests are refused (404), those in progress end first. A second
one ends it at once.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import threading

from ureca.errors import ConfigError

__all__ = ["serve_locally"]

_HOST_HELP = (
    "default 127.0.0.1: this machine only. Here nobody is asked for a token: to serve to others, set access_tokens in "
    "serve_apps/captioner.yaml (`ureca token NAME` makes one), put TLS in front, and `serve run` that file"
)


def serve_locally(argv: list[str]) -> None:
    """The subcommand: start Ray, the API and one engine, and stay until Ctrl-C.

    Raises:
        UrecaError: the model can't be used, or the port is taken.
    """
    options = _parser().parse_args(argv)
    _check_port(options.host, options.port)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

    from ray import serve

    from ureca.cluster import connect
    from ureca.serving import Settings, build
    from ureca.serving.proxy import use_for_ray_started_here
    from ureca.serving.settings import one_model

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    application = build(Settings(models=one_model(options.model, num_gpus=options.gpus)))
    in_order = False
    try:
        print("starting the engine (about a minute on two cores) …", flush=True)
        use_for_ray_started_here()
        connect()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray, whose own would end it on the spot
        serve.start(http_options={"host": options.host, "port": options.port})
        serve.run(application, name="captioner", route_prefix="/")
        print(f"ready: http://{options.host}:{options.port} (requests: /docs)   Ctrl-C ends it", flush=True)
        in_order = True
        threading.Event().wait()
    except KeyboardInterrupt:
        if in_order:
            print("ending the requests in progress …   Ctrl-C again ends it at once", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                serve.delete("captioner")  # Serve's own shutdown ends the proxy first, and with it what it answers
        print("stopped")
    finally:
        serve.shutdown()


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"--port {port}: give a port from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--host {host} --port {port}: {error.strerror}. Give another --port.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ureca serve", description="Serve captions over HTTP on this machine.")
    parser.add_argument("--model", metavar="DIR", help="an export (jobs/export.py); default: nano, which ships")
    parser.add_argument("--host", default="127.0.0.1", help=_HOST_HELP)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--gpus", type=float, default=0, help="that the engine may take; default 0: on the CPU")
    return parser
