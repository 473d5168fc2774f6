"""The describer with a vLLM engine of its own: one engine in each actor of the labeling job, on the actor's GPUs.

The engine batches over all questions of all images that the actor has under way. An actor takes whole GPUs of one
machine, as many as share the model (`gpus_per_actor`), so a tensor-parallel group is one actor and Ray places it like
any other.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ureca.engine.chat import ChatEngine, EngineDiedError
from ureca.errors import ConfigError
from ureca.labeling.answers import Reply
from ureca.labeling.errors import EndpointLost
from ureca.labeling.looking import LookingDescriber
from ureca.labeling.prompts import Prompt, PromptSet

__all__ = ["VllmConfig", "VllmDescriber", "gpus_per_actor"]

logger = logging.getLogger(__name__)

_DIED = 70
"""Exit code of a worker whose engine died (EX_SOFTWARE)."""


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """A model for vLLM and the GPUs that it gets."""

    model: str = "OpenGVLab/InternVL3-38B-hf"
    """Hub name or folder of a multimodal model; nano: the one that ships, which shows that all works and whose
    captions are worth nothing."""
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
                raise ConfigError(f"vllm.{name}={getattr(self, name)}: give {least} or more")
        if self.gpus_per_actor and not (
            self.gpus_per_actor == self.tensor_parallel_size
            or (self.gpus_per_actor < 1 and self.tensor_parallel_size == 1)
        ):
            raise ConfigError(
                f"vllm.gpus_per_actor={self.gpus_per_actor:g} with vllm.tensor_parallel_size="
                f"{self.tensor_parallel_size}: an actor takes as many GPUs as share its model, or a part of one"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"vllm.gpu_memory_utilization={self.gpu_memory_utilization}: give a share of 1")


def gpus_per_actor(config: VllmConfig, cluster_gpus: float) -> float:
    """What Ray is asked to set aside for each actor; 0 in a cluster without GPUs, where engines run on CPUs.

    Raises:
        ConfigError: the whole cluster has fewer GPUs than one actor needs.
    """
    needed = config.gpus_per_actor or float(config.tensor_parallel_size)
    if 0 < cluster_gpus < needed:
        raise ConfigError(
            f"vllm.tensor_parallel_size={config.tensor_parallel_size}: an actor needs {needed:g} GPUs of one machine, "
            f"the cluster has {cluster_gpus:g}"
        )
    return needed if cluster_gpus else 0.0


def _end_process() -> None:
    os._exit(_DIED)


class VllmDescriber(LookingDescriber):
    """Asks an engine in its own process; the first question starts it."""

    name = "vllm"

    def __init__(
        self, config: VllmConfig, prompts: PromptSet, *, when_engine_died: Callable[[], None] = _end_process
    ) -> None:
        """No engine is started yet.

        Args:
            config: the model and its GPUs.
            prompts: the questions.
            when_engine_died: what happens then. The worker ends with its engine: Ray starts both anew and runs the
                unfinished images again, and finds out those that kill their worker each time.
        """
        from ureca.model.presets import preset_path  # brings torch, which who only reads VllmConfig need not load

        super().__init__(prompts, most_prepared=2 * config.max_num_seqs)
        self.model = config.model
        self._when_engine_died = when_engine_died
        self._weights = preset_path(config.model)
        self._engine = ChatEngine(
            self._weights,
            dtype=config.dtype,
            max_model_len=config.max_model_len or None,
            max_num_seqs=config.max_num_seqs,
            max_pictures=prompts.most_views,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
        )
        self._starting = asyncio.Lock()
        self._started = False
        self._could_not_start: EndpointLost | None = None

    async def check(self) -> None:
        """See that a model given as a folder is there; weights from the hub are fetched by the workers.

        Raises:
            ConfigError: no such folder.
        """
        is_folder = self._weights.startswith((".", "/")) or self._weights.count("/") > 1
        if is_folder and not (Path(self._weights) / "config.json").is_file():
            raise ConfigError(
                f"vllm.model={self.model}: no model there (no config.json); give a folder or a name of the hub"
            )

    async def close(self) -> None:
        self._engine.close()
        await asyncio.sleep(0.1)  # vLLM closes its sockets in tasks of this loop
        self._started = False

    async def _reply(self, prompt: Prompt) -> Reply:
        async with self._starting:
            if self._could_not_start:
                raise self._could_not_start
            if not self._started:
                await self._start()
        content = [part for told, picture in prompt.views for part in (told, picture)]
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            reply = await self._engine.chat(
                prompt.system,
                [*content, prompt.text_for(structured=True)],
                max_tokens=prompt.max_tokens,
                schema=prompt.schema,
                temperature=prompt.temperature,
                seed=prompt.seed,
            )
        except EngineDiedError as error:
            logger.error("%s; this worker ends with it", error)
            self._when_engine_died()
            raise EndpointLost(f"{error}; give the same command again") from error
        return Reply(
            text=reply.text,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            seconds=loop.time() - started,
        )

    async def _start(self) -> None:
        try:
            await self._engine.start()
        except Exception as error:  # whatever vLLM raises: no image is to blame for it
            reason = " ".join(str(error).split())[:300]
            self._could_not_start = EndpointLost(
                f"vllm.model={self.model}: vLLM could not start it ({type(error).__name__}: {reason}); the worker's "
                "log says more. Correct vllm.* and give the same command again"
            )
            raise self._could_not_start from error
        self._started = True
