"""Connect a job to Ray: join a cluster, or start one on this machine.

A cluster's machines need not have this package installed: it is sent along (`py_modules`) and takes precedence over an
older installed copy. The package's folder is sent instead of `platform/`, whose name would shadow the standard
library's module if it ever became a package.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from ureca.errors import ConfigError

# A pool of labeling actors, two training workers and their controllers each request one CPU, though most of them wait
# most of the time: on a small machine Ray is given more CPUs than there are.
_MIN_LOGICAL_CPUS = 4


def _address() -> str | None:
    """Return the cluster to join; None to start a private Ray."""
    address = os.environ.get("RAY_ADDRESS")
    return address if address and address != "local" else None


def joins_cluster() -> bool:
    """Return True if `connect` joins an existing cluster, whose machines may be added on demand."""
    return _address() is not None


def before_importing_ray() -> None:
    """Set what Ray reads at import; set later, it would apply to Ray's processes but not to this one.

    A Ray started here asks for a token, created on first use. That is Ray's default too, but Ray warns about relying on
    it. Does nothing if Ray is already imported.
    """
    if _address() is None and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def connect() -> None:
    """Join the cluster in RAY_ADDRESS, or start Ray on this machine.

    `ray job submit` sets RAY_ADDRESS. Does nothing if this process has already joined one. A Ray started here ends with
    the process. Other clusters on this machine are ignored: set RAY_ADDRESS to use one.

    Raises:
        ConfigError: no Ray could be started here, or the cluster that RAY_ADDRESS names can't be joined.
    """
    before_importing_ray()
    import ray

    if ray.is_initialized():
        return
    # Ray's startup log and its workers' output would bury the job's lines. Workers' exceptions reach the driver anyway;
    # their output is in /tmp/ray/session_latest/logs (or the dashboard).
    settings: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    address = _address()
    try:
        if address is not None:
            package = str(Path(__file__).resolve().parent)
            ray.init(address=address, runtime_env={"py_modules": [package]}, **settings)
        else:
            cpus = max(_MIN_LOGICAL_CPUS, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **settings)
    except Exception as error:  # Ray has no exception class for a failed start
        raise ConfigError(f"{_remedy(address)} Ray says: {' '.join(str(error).split())}") from error


def autoscaling_maximum() -> dict[str, float]:
    """Return the resources that the joined cluster may scale to; empty without autoscaling."""
    # The only source of a cluster's maximum size; Ray Train uses it too. None without autoscaling.
    from ray._private.state import state

    return dict(state.get_max_resources_from_cluster_config() or {})


def _remedy(address: str | None) -> str:
    if address is not None:
        return (
            f"RAY_ADDRESS={address}: can't join this cluster. Set the address of a running cluster, or unset it to "
            "start a Ray here."
        )
    return (
        "Ray could not be started on this machine. Common causes are a busy machine, or too little memory or disk "
        "space; run `ureca doctor`, and see the logs in /tmp/ray/session_latest/logs."
    )
