"""Placement check: refuse workers that the cluster can never hold, for which Ray would wait silently."""

from collections.abc import Mapping, Sequence

from ureca.cluster import autoscaling_maximum
from ureca.errors import ConfigError
from ureca.training.config import WorkersConfig


def require_room(workers: WorkersConfig) -> None:
    """Refuse workers that the joined cluster can't hold, now or after scaling to its maximum.

    Raises:
        ConfigError: names the cluster's resources.
    """
    import ray

    grown = autoscaling_maximum()
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    refuse_without_room(workers, [grown] if grown else nodes)


def refuse_without_room(workers: WorkersConfig, machines: Sequence[Mapping[str, float]]) -> None:
    """Raise ConfigError unless the machines, by Ray's count of their resources, hold all workers at once."""
    resource, unit = ("GPU", "GPU") if workers.use_gpu else ("CPU", "logical CPU")
    room = sum(int(machine.get(resource, 0)) for machine in machines)
    if room >= workers.num_workers:
        return
    has = f"the cluster has {len(machines)} machine{'s' if len(machines) != 1 else ''} with {_count(room, unit)}"
    if not workers.use_gpu:
        raise ConfigError(
            f"workers.num_workers={workers.num_workers}: {has}, and each worker needs one. Set "
            f"--workers.num_workers={max(1, room)}, or join a larger cluster (RAY_ADDRESS)."
        )
    if room:
        raise ConfigError(
            f"workers.num_workers={workers.num_workers} with workers.use_gpu=true: {has}, and each worker needs one. "
            f"Set --workers.num_workers={room}, or join a larger cluster (RAY_ADDRESS)."
        )
    names = ("bf16", "offload_optimizer", "offload_weights")
    needs_gpu = ", ".join(["use_gpu=true", *(f"{name}=true" for name in names if getattr(workers, name))])
    raise ConfigError(
        f"workers: {needs_gpu}: {has}. Join a cluster with GPUs (RAY_ADDRESS), or set "
        f"--workers.use_gpu=false{' and disable offloading' if 'offload' in needs_gpu else ''}."
    )


def _count(number: int, unit: str) -> str:
    return f"{number or 'no'} {unit}{'s' if number > 1 else ''}"
