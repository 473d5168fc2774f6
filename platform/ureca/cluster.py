"""The one place where a job meets Ray: joins a cluster, or starts one on this machine.

A cluster's machines need not have this package: it is sent along (`py_modules`), also where they have an
older copy installed. The package's own folder is sent and not `platform/`, whose name would shadow the
standard library's module if it ever became a package.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from ureca.errors import ConfigError

# A pool of labeling actors, two training workers and their controllers each ask for a CPU of their own,
# though most of them wait most of the time: on a small machine Ray is told of more CPUs than there are.
_MIN_LOGICAL_CPUS = 4


def _address() -> str | None:
    """The cluster to join; None where a Ray of the process's own is to be started."""
    address = os.environ.get("RAY_ADDRESS")
    return address if address and address != "local" else None


def joins_cluster() -> bool:
    """Whether `connect` joins a cluster that others have started; its machines may come when they are asked for."""
    return _address() is not None


def before_importing_ray() -> None:
    """Settle what Ray reads when it is imported: set later, it would hold for its processes but not for this.

    A Ray that is started here asks for a token, made on first use. That is Ray's default too, but one of
    which it warns. Does nothing where Ray is imported already.
    """
    if _address() is None and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start a Ray on this machine.

    Does nothing where this process has joined one already. A Ray started here ends with the process.
    Other clusters that may run on this machine are left alone: name one with RAY_ADDRESS to use it.

    Raises:
        ConfigError: no Ray could be started here, or the cluster that RAY_ADDRESS names can't be joined.
    """
    before_importing_ray()
    import ray

    if ray.is_initialized():
        return
    # Ray's account of its start and its workers' chatter would bury the job's lines. What a worker raises
    # reaches the driver in any case; what it prints is in /tmp/ray/session_latest/logs (or the dashboard).
    settings: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    address = _address()
    try:
        if address is not None:
            package = str(Path(__file__).resolve().parent)
            ray.init(address=address, runtime_env={"py_modules": [package]}, **settings)
        else:
            cpus = max(_MIN_LOGICAL_CPUS, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **settings)
    except Exception as error:  # Ray has no class of its own for a start that failed
        raise ConfigError(f"{_what_to_do(address)} Ray says: {' '.join(str(error).split())}") from error


def _what_to_do(address: str | None) -> str:
    if address is not None:
        return f"RAY_ADDRESS={address}: can't be joined. Name a cluster that runs; without it a Ray is started here."
    return (
        "Ray could not be started on this machine. One that is very busy, or lacks memory or room on the disk, does "
        "this; `ureca doctor` looks, and logs are in /tmp/ray/session_latest/logs."
    )
