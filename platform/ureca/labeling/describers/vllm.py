"""Describer with its own vLLM engine: one engine per actor of the labeling job, on the actor's GPUs.

The engine batches over all requests of all images in progress. An actor takes entire GPUs of one machine, as many as
share the model (`gpus_per_actor`), so a tensor-parallel group is one actor and Ray places it like any other.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ureca.engine.chat import ChatEngine
from ureca.engine.config import EngineConfig
from ureca.errors import ConfigError
from ureca.labeling.describers.answers import Reply
from ureca.labeling.describers.prompts import Prompt, PromptSet
from ureca.labeling.describers.vlm import VlmDescriber
from ureca.pipeline.engine_actor import EngineActor, end_process


@dataclass(frozen=True, kw_only=True)
class VllmConfig(EngineConfig):
    """A model for vLLM, and its GPUs."""

    section: ClassVar[str] = "vllm"

    model: str = "OpenGVLab/InternVL3-38B-hf"
    """Hub name or folder of a multimodal model. nano: the packaged one, to test the setup; its captions are
    worthless."""


class VllmDescriber(VlmDescriber):
    """Sends requests to an engine in this process; the first request starts it."""

    name = "vllm"

    def __init__(
        self, config: VllmConfig, prompts: PromptSet, *, on_engine_death: Callable[[], None] = end_process
    ) -> None:
        """Store the configuration without starting the engine.

        Args:
            config: the model and its GPUs.
            prompts: the prompt set.
            when_engine_died: as in `EngineActor`.
        """
        from ureca.model.internvl.presets import (
            preset_path,  # imports torch, which readers of VllmConfig do not need
        )

        super().__init__(prompts, max_prepared=2 * config.max_num_seqs)
        self.model = config.model
        self._weights = preset_path(config.model)
        self._engine = ChatEngine(self._weights, max_pictures=prompts.max_views, **config.engine_options())
        self._own = EngineActor(
            self._engine, model=f"vllm.model={config.model}", section="vllm", on_engine_death=on_engine_death
        )

    async def check(self) -> None:
        """Check that a model folder exists; workers fetch weights from the hub.

        Raises:
            ConfigError: no such folder.
        """
        is_folder = self._weights.startswith((".", "/")) or self._weights.count("/") > 1
        if is_folder and not (Path(self._weights) / "config.json").is_file():
            raise ConfigError(
                f"vllm.model={self.model}: is not a model folder (no config.json); set it to a folder or a hub name"
            )

    async def close(self) -> None:
        await self._own.close()

    async def _reply(self, prompt: Prompt) -> Reply:
        content = [part for label, picture in prompt.views for part in (label, picture)]
        loop = asyncio.get_running_loop()
        async with self._own.running():
            started = loop.time()
            reply = await self._engine.chat(
                prompt.system,
                [*content, prompt.text_for(structured=True)],
                max_tokens=prompt.max_tokens,
                schema=prompt.schema,
                temperature=prompt.temperature,
                seed=prompt.seed,
            )
        return Reply(
            text=reply.text,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            seconds=loop.time() - started,
        )
