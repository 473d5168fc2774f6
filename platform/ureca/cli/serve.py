"""`ureca serve`: serve the HTTP API on this machine, with default settings or those of a Serve YAML.

Ctrl-C and SIGTERM shut down gracefully: new requests get 503 and requests in progress finish. A second signal ends it
at once.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import threading
from typing import Any

from pydantic import ValidationError

from ureca.cluster import before_importing_ray, connect, joins_cluster
from ureca.config import read_config
from ureca.engine.config import engine_gpus
from ureca.errors import ConfigError
from ureca.hardware import installed_version, list_gpus
from ureca.serving.settings import Engine, Settings, one_model

_IMPORT_PATHS = ("serve_apps.captioner:build", "ureca.serving:build")
_HOST_HELP = (
    "default: the YAML's, or 127.0.0.1, this machine only, without authentication. To serve other machines, set "
    "access_tokens as in serve_apps/captioner.yaml (`ureca token NAME` creates one), and put TLS in front"
)


@dataclasses.dataclass(kw_only=True)
class _Service:
    settings: Settings
    name: str = "captioner"
    route_prefix: str | None = "/"
    start: dict[str, Any]
    """Keyword arguments of `serve.start`, including `http_options`."""
    logging_config: dict[str, Any] | None = None
    """Logging configuration of the application."""


def serve_locally(argv: list[str]) -> None:
    """Run the subcommand: start Ray, the API and its engines, and wait for Ctrl-C.

    Raises:
        UrecaError: the YAML or the model is unusable, or the port is in use.
    """
    if joins_cluster():
        raise ConfigError(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: `ureca serve` serves from this machine with a local Ray; use "
            "`serve deploy` for a cluster, or unset RAY_ADDRESS."
        )
    service = parse_arguments(argv)
    http = service.start["http_options"]
    _check_port(http["host"], http["port"])
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

    before_importing_ray()
    import ray
    from ray import serve
    from ray.exceptions import RayError

    from ureca.serving.deployments import build
    from ureca.serving.proxy import use_for_ray_started_here

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    application = build(service.settings)
    ingress = None
    try:
        print("starting the engine (about a minute on two cores) …", flush=True)
        use_for_ray_started_here()
        connect()
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # after ray.init, whose own handler would end the process at once
        serve.start(**service.start)
        ingress = serve.run(
            application, name=service.name, route_prefix=service.route_prefix, logging_config=service.logging_config
        )
        url = f"http://{http['host']}:{http['port']}{(service.route_prefix or '/').rstrip('/')}"
        print(f"ready: {url} (API: /docs)   Ctrl-C stops", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        if ingress is not None:
            print("finishing requests in progress …   Ctrl-C again stops at once", flush=True)
            with contextlib.suppress(KeyboardInterrupt, TimeoutError, RayError):
                ingress.drain.remote().result(timeout_s=service.settings.upkeep.drain_seconds)
                serve.delete(service.name)  # engines shut down gracefully too
        print("stopped")
    finally:
        # Not `serve.shutdown()`: Ray prints an error, because it kills Serve's controller while waiting for it.
        ray.shutdown()


def parse_arguments(argv: list[str]) -> _Service:
    """Parse the arguments of the subcommand. Raises ConfigError."""
    options = _parser().parse_args(argv)
    if options.yaml is None:
        models = one_model(options.model, **_resources(options.gpus or 0, Engine()))
        service = _Service(
            settings=Settings(models=models), start={"http_options": {"host": "127.0.0.1", "port": 8000}}
        )
    else:
        service = _from_yaml(options.yaml)
        if options.model is not None or options.gpus is not None:
            service.settings = _with_one_model(service.settings, options)
    if options.gpus is None:
        service.settings = _on_gpus_here(service.settings)
    given = {"host": options.host, "port": options.port}
    service.start["http_options"].update({key: value for key, value in given.items() if value is not None})
    return service


def _with_one_model(settings: Settings, options: argparse.Namespace) -> Settings:
    """Replace the YAML's models by one model, with the resources of its first one."""
    first = next(iter(settings.models.values()))
    own = {name: getattr(first, name) for name in type(first).model_fields if name != "export"}
    if options.gpus is not None:
        own |= _resources(options.gpus, first.engine)
    export = first.export if options.model is None else options.model
    return settings.model_copy(update={"models": one_model(export, **own)})


def _on_gpus_here(settings: Settings) -> Settings:
    """Give models without a GPU one each, if this machine has GPUs and vLLM's GPU build, which needs one.

    Without a reservation all of them would start on the first GPU.
    """
    if installed_version("vllm") is None or not list_gpus():
        return settings
    models = {
        name: model if model.num_gpus else model.model_copy(update={"num_gpus": 1.0})
        for name, model in settings.models.items()
    }
    return settings.model_copy(update={"models": models})


def _resources(gpus: float, engine: Engine) -> dict[str, Any]:
    """Return the fields of `ServedModel` for an engine on this many GPUs, which share the model."""
    shared = max(1, int(gpus) // engine_gpus(1, engine.vllm_args))
    return {"num_gpus": gpus, "engine": engine.model_copy(update={"tensor_parallel_size": shared})}


def _from_yaml(path: str) -> _Service:
    """Read a Serve YAML. Refuses what `ureca serve` can't honor."""
    try:
        mapping = read_config(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    before_importing_ray()
    from ray.serve.schema import ServeDeploySchema

    try:
        config = ServeDeploySchema.model_validate(mapping).model_dump(exclude_unset=True)
        names = [application["import_path"] for application in config["applications"]]
        if len(names) != 1 or names[0] not in _IMPORT_PATHS:
            raise ConfigError(
                f"{path}: has applications {names}; `ureca serve` runs one {_IMPORT_PATHS[0]}; use `serve run` for "
                "others."
            )
        [application] = config.pop("applications")
        settings = Settings.model_validate(application.pop("args", {}))
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"{path}: {details}.") from error
    known = ("import_path", "name", "route_prefix", "logging_config")
    if unknown := [*sorted(application.keys() - known), *config.keys() & {"target_capacity"}]:
        raise ConfigError(
            f"{path}: {', '.join(unknown)}: not supported by `ureca serve`; use `serve run` or `serve deploy`."
        )
    http_options = {"host": "127.0.0.1", "port": 8000, **config.pop("http_options", {})}
    del application["import_path"]
    return _Service(settings=settings, start={**config, "http_options": http_options}, **application)


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"--port {port}: must be a port from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--host {host} --port {port}: {error.strerror}. Set another --port.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ureca serve", description="Serve captions over HTTP on this machine.")
    parser.add_argument("yaml", nargs="?", metavar="YAML", help="settings, as in serve_apps/captioner.yaml")
    parser.add_argument(
        "--model", metavar="DIR", help="export (jobs/export.py); default: the YAML's, or the packaged nano"
    )
    parser.add_argument("--host", help=_HOST_HELP)
    parser.add_argument("--port", type=int, help="default: the YAML's, or 8000")
    parser.add_argument(
        "--gpus", type=float, help="GPUs per engine; default: the YAML's; 0 becomes 1 where vLLM runs on GPUs"
    )
    return parser
