"""Configuration of an engine inside a job's actors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """An engine and its GPUs."""

    section: ClassVar[str] = "engine"
    """Section of the job's configuration, for error messages."""

    tensor_parallel_size: int = 1
    """GPUs that share one model. 38 billion weights in bfloat16 take 76 GB: one GPU of 141 GB, two of 80, four of
    40."""
    gpus_per_actor: float = 0.0
    """GPUs per actor. 0: as many as share the model. Below 1 several engines share a GPU: lower gpu_memory_utilization
    too."""
    max_num_seqs: int = 64
    """Maximum requests per engine step."""
    max_model_len: int = 0
    """Maximum tokens of prompt and answer. 0: the model's limit."""
    gpu_memory_utilization: float = 0.9
    """Share of each GPU's memory for the engine."""
    dtype: str = "auto"
    """auto (bfloat16 on GPUs, float32 on CPUs), float32 or bfloat16."""
    vllm_args: dict[str, Any] = field(default_factory=dict)
    """Further engine arguments of vLLM by name, for example {max_num_batched_tokens: 16384, quantization: fp8}."""

    def engine_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `CaptionEngine` and `ChatEngine`."""
        return {
            "dtype": self.dtype,
            "max_model_len": self.max_model_len or None,
            "max_num_seqs": self.max_num_seqs,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "vllm_args": self.vllm_args,
        }

    def __post_init__(self) -> None:
        for name, least in (("tensor_parallel_size", 1), ("gpus_per_actor", 0), ("max_num_seqs", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{self.section}.{name}={getattr(self, name)}: must be at least {least}")
        needed = engine_gpus(self.tensor_parallel_size, self.vllm_args)
        if self.gpus_per_actor and not (self.gpus_per_actor == needed or (self.gpus_per_actor < 1 and needed == 1)):
            raise ConfigError(
                f"{self.section}.gpus_per_actor={self.gpus_per_actor:g} with {needed} GPUs per model "
                f"({self.section}.tensor_parallel_size={self.tensor_parallel_size}): an actor takes as many GPUs as "
                "share its model, or a fraction of one"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"{self.section}.gpu_memory_utilization={self.gpu_memory_utilization}: must be a "
                "share, above 0 and at most 1"
            )


def engine_gpus(tensor_parallel_size: int, vllm_args: Mapping[str, Any]) -> int:
    """Return the number of GPUs that share one model.

    Raises:
        ConfigError: `pipeline_parallel_size` in `vllm_args` is not a whole number above 0.
    """
    stages = vllm_args.get("pipeline_parallel_size", 1)
    if not isinstance(stages, int) or stages < 1:
        raise ConfigError(f"vllm_args.pipeline_parallel_size={stages}: must be a whole number, at least 1")
    return tensor_parallel_size * stages


def gpus_per_actor(config: EngineConfig, cluster_gpus: float, *, may_grow: bool = False) -> float:
    """Return the GPUs that Ray reserves per actor; 0 in a cluster without GPUs, where engines run on CPUs.

    `may_grow`: the cluster may add GPU machines on demand.

    Raises:
        ConfigError: the cluster has fewer GPUs than one actor needs.
    """
    needed = config.gpus_per_actor or float(engine_gpus(config.tensor_parallel_size, config.vllm_args))
    if not cluster_gpus:
        return needed if may_grow else 0.0
    if cluster_gpus < needed:
        raise ConfigError(
            f"{config.section}.tensor_parallel_size={config.tensor_parallel_size}: an actor needs {needed:g} GPUs of "
            f"one machine, but the cluster has {cluster_gpus:g}"
        )
    return needed
