"""The one place where a job meets Ray: joins a cluster, or starts one on this machine.

A cluster's machines need not have this package: it is sent along (`py_modules`), also where they have an
older copy installed. The package's own folder is sent and not `platform/`, whose name would shadow the
standard library's module if it ever became a package.
"""

import logging
import os
from pathlib import Path
from typing import Any

__all__ = ["connect"]

# A pool of labeling actors, two training workers and their controllers each ask for a CPU of their own,
# though most of them wait most of the time: on a small machine Ray is told of more CPUs than there are.
_LEAST_LOGICAL_CPUS = 4


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start a Ray on this machine.

    Does nothing where this process has joined one already. A Ray started here ends with the process.
    Other clusters that may run on this machine are left alone: name one with RAY_ADDRESS to use it.
    """
    import ray

    if ray.is_initialized():
        return
    # Ray's account of its start and its workers' chatter would bury the job's lines. What a worker raises
    # reaches the driver in any case; what it prints is in /tmp/ray/session_latest/logs (or the dashboard).
    settings: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        package = str(Path(__file__).resolve().parent)
        ray.init(address=address, runtime_env={"py_modules": [package]}, **settings)
    else:
        # Chosen on purpose, so that Ray does not warn of its default; the token is made on first use.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        cpus = max(_LEAST_LOGICAL_CPUS, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **settings)
