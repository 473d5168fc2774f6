"""What can be set of an engine that runs inside the actors of a job."""

from dataclasses import dataclass
from typing import ClassVar

from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """An engine and the GPUs that it gets."""

    section: ClassVar[str] = "engine"
    """Where it stands in a job's configuration: what errors name."""

    tensor_parallel_size: int = 1
    """GPUs that share one model. 38 billion weights in bfloat16 take 76 GB: one GPU of 141 GB, two of
    80, four of 40."""
    gpus_per_actor: float = 0.0
    """GPUs that an actor takes; 0: as many as share the model. Less than 1 puts several engines on one GPU: lower
    gpu_memory_utilization with it."""
    max_num_seqs: int = 64
    """Questions that the engine works on at once."""
    max_model_len: int = 0
    """Most tokens of question and answer; 0: as many as the model can."""
    gpu_memory_utilization: float = 0.9
    """Share of each GPU's memory that the engine may take."""
    dtype: str = "auto"
    """auto (bfloat16 on a GPU, float32 on a CPU), float32 or bfloat16."""

    def __post_init__(self) -> None:
        for name, least in (("tensor_parallel_size", 1), ("gpus_per_actor", 0), ("max_num_seqs", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{self.section}.{name}={getattr(self, name)}: give {least} or more")
        if self.gpus_per_actor and not (
            self.gpus_per_actor == self.tensor_parallel_size
            or (self.gpus_per_actor < 1 and self.tensor_parallel_size == 1)
        ):
            raise ConfigError(
                f"{self.section}.gpus_per_actor={self.gpus_per_actor:g} with {self.section}.tensor_parallel_size="
                f"{self.tensor_parallel_size}: an actor takes as many GPUs as share its model, or a part of one"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"{self.section}.gpu_memory_utilization={self.gpu_memory_utilization}: give a share of 1")


def gpus_per_actor(config: EngineConfig, cluster_gpus: float, *, may_grow: bool = False) -> float:
    """What Ray is asked to set aside for each actor; 0 in a cluster without GPUs, where engines run on CPUs.

    `may_grow`: the cluster's machines with GPUs may come only when they are asked for.

    Raises:
        ConfigError: the whole cluster has fewer GPUs than one actor needs.
    """
    needed = config.gpus_per_actor or float(config.tensor_parallel_size)
    if not cluster_gpus:
        return needed if may_grow else 0.0
    if cluster_gpus < needed:
        raise ConfigError(
            f"{config.section}.tensor_parallel_size={config.tensor_parallel_size}: an actor needs {needed:g} GPUs of "
            f"one machine, the cluster has {cluster_gpus:g}"
        )
    return needed
