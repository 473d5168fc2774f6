"""Captions from an engine in the actor's own process: the serving engine, without the service."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ureca.captioning.source import Captioned
from ureca.corpus.read import LoadedImage
from ureca.engine.config import EngineConfig
from ureca.engine.engine import CaptionEngine
from ureca.pipeline.engine_actor import EngineActor, end_process
from ureca.regions.rle import Rle


class EngineSource:
    """Caption source with its own engine; the first image starts it."""

    def __init__(
        self, export_dir: Path, config: EngineConfig, *, when_engine_died: Callable[[], None] = end_process
    ) -> None:
        """Check the export without starting the engine; `when_engine_died` as in `EngineActor`.

        Raises:
            CheckpointError: the folder is not an export, or its parts do not match.
        """
        self._engine = CaptionEngine(
            export_dir,
            dtype=config.dtype,
            max_model_len=config.max_model_len or None,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
        )
        self.load = self._engine.load
        self._own = EngineActor(
            self._engine, model=f"model={export_dir}", section=config.section, when_engine_died=when_engine_died
        )

    @property
    def start_seconds(self) -> float:
        """Seconds that the engine took to start (see `CaptionSource`)."""
        return self._own.start_seconds

    async def caption(self, image: LoadedImage, asked: Sequence[tuple[Rle, str]], max_tokens: int) -> Captioned:
        """Caption all regions at once; the engine computes the image once (see `CaptionSource`)."""
        query = self._engine.prompts.processor.query
        async with self._own.running():
            captions = await self._engine.caption(
                image.image,
                [segmentation for segmentation, _ in asked],
                [query(style) for _, style in asked],
                max_tokens=max_tokens,
            )
        return Captioned(
            texts=tuple(each.text for each in captions),
            cut=tuple(each.finish_reason == "length" for each in captions),
            prompt_tokens=sum(each.prompt_tokens for each in captions),
            completion_tokens=sum(each.completion_tokens for each in captions),
            cached_tokens=sum(each.cached_tokens for each in captions),
        )

    async def close(self) -> None:
        """End the engine."""
        await self._own.close()
