"""Start and end vLLM's engine processes, the same way for every use."""

from __future__ import annotations

import dataclasses
import difflib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ureca.devices import gpus_allowed
from ureca.engine.config import engine_gpus
from ureca.errors import ConfigError

# Defaults for unset variables: vLLM's own would use every core and half of the memory.
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # OMP_NUM_THREADS decides; binding would tie all engines to one core
    "OMP_NUM_THREADS": "1",
}
# A dozen warnings about missing CPU features would bury our own lines; INFO logs vLLM's start.
_QUIET_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}

# vLLM's engine does not notice when the process that uses it is killed, and would hold its GPU memory forever. The
# guard waits for the end of its input, which comes with the end of that process in every case. A pidfd, unlike a pid,
# can't refer to another process by then.
GUARD = """# ends vLLM's engines with the process that uses them
import os, signal, sys
engines = [os.pidfd_open(int(pid)) for pid in sys.argv[1:]]
sys.stdin.read()
for engine in engines:
    try:
        signal.pidfd_send_signal(engine, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
# Tokens of one engine step. vLLM's default for an embedded engine, 2,048, leaves a GPU idle, and is less than one image
# of 12 tiles and a thumbnail.
_STEP_TOKENS_CPU, _STEP_TOKENS_GPU = 2048, 8192

_guards: dict[int, subprocess.Popen[bytes]] = {}
"""Guard of each running engine, by the engine's `id`."""


class EngineDiedError(Exception):
    """vLLM's processes are gone; this engine can't answer any more."""


def start_llm(
    *,
    model: str,
    dtype: str,
    tensor_parallel_size: int,
    gpu_memory_utilization: float,
    longest_image: int = 0,
    stat_loggers: Sequence[Any] = (),
    vllm_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Start vLLM's `AsyncLLM` and load the weights: 20 to 60 s on two cores. End it with `end_llm`.

    Its processes end with this one, even if this one is killed. Call it in the event loop that will use the engine.
    Scripts need `if __name__ == "__main__":`, because vLLM's processes import them.

    Args:
        model: folder or hub name.
        dtype: "float32", "bfloat16", or "auto": float32 on CPUs, bfloat16 on GPUs.
        tensor_parallel_size: GPUs that share the model.
        gpu_memory_utilization: share of each GPU's memory for the engine; ignored on CPUs.
        longest_image: tokens of the largest image. vLLM refuses an image of more tokens than one of its steps holds
            (`max_num_batched_tokens`), so a step is made at least this long.
        stat_loggers: vLLM metric logger classes; empty: no metrics.
        vllm_args: `AsyncEngineArgs` of vLLM that the user has set.
        options: `AsyncEngineArgs` that the caller sets.

    Raises:
        ConfigError: vLLM has no such argument, or the caller sets it.
    """
    for name, value in {**_CPU_ENVIRONMENT, **_QUIET_ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = current_platform.is_cpu()
    if not on_cpu and not gpus_allowed():
        raise ConfigError(
            f"{model}: vLLM's GPU build needs a GPU, but Ray assigned none to this process; set num_gpus: 1 for a "
            "served model, or start Ray on a machine whose GPUs it detects"
        )
    chosen = dict(vllm_args or {})
    arguments = {
        "model": model,
        "dtype": ("float32" if on_cpu else "bfloat16") if dtype == "auto" else dtype,
        "tensor_parallel_size": tensor_parallel_size,
        "gpu_memory_utilization": gpu_memory_utilization,
        "disable_log_stats": True,
        **options,
    }
    _check_vllm_args(chosen, known=[field.name for field in dataclasses.fields(AsyncEngineArgs)], taken=arguments)
    if on_cpu:
        del arguments["gpu_memory_utilization"]
    world_size = engine_gpus(tensor_parallel_size, chosen)
    defaults = {
        "enable_prefix_caching": True,
        "enforce_eager": on_cpu,  # compiling takes longer than it saves
        "generation_config": "vllm",  # use the caller's sampling parameters, not the base's defaults
        "distributed_executor_backend": _executor(world_size, on_cpu=on_cpu),
        "max_num_batched_tokens": max(_STEP_TOKENS_CPU if on_cpu else _STEP_TOKENS_GPU, longest_image),
    }
    before = set(multiprocessing.active_children())
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(**{**defaults, **arguments, **chosen}), stat_loggers=list(stat_loggers)
    )
    _guards[id(llm)] = guard([child.pid for child in set(multiprocessing.active_children()) - before if child.pid])
    return llm


def _check_vllm_args(chosen: Mapping[str, Any], *, known: Sequence[str], taken: Mapping[str, Any]) -> None:
    for name in chosen:
        if name in taken:
            raise ConfigError(f"vllm_args.{name}: is set by the engine's own settings; remove it from vllm_args")
        if name not in known:
            near = difflib.get_close_matches(name, known)
            raise ConfigError(
                f"vllm_args.{name}: vLLM's AsyncEngineArgs has no such argument"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
            )


def _executor(world_size: int, *, on_cpu: bool) -> Any:
    """Return vLLM's executor: the worker runs in the engine's process unless it must have its own.

    vLLM's CPU platform gives every worker a process, to bind its threads to cores. Without binding that process only
    costs: an engine starts 1.6 times slower, takes 0.7 GB more, and passes each step through a pipe.
    """
    if world_size > 1:
        return "mp"
    if not on_cpu or os.environ["VLLM_CPU_OMP_THREADS_BIND"] != "nobind":
        return None
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor  # the class: the name "uni" is what the CPU platform replaces


def guard(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a process that kills these pids when this process ends, or when its input is closed."""
    arguments = [sys.executable, "-c", GUARD, *map(str, pids)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, start_new_session=True)


def end_llm(llm: Any) -> None:
    """End the engine's processes. Call it in the event loop in which the engine was started."""
    llm.shutdown()
    llm.shutdown = lambda: None  # its __del__ shuts down again: at exit, with vLLM's modules gone, in a traceback
    _guards.pop(id(llm)).communicate()  # closes its input
