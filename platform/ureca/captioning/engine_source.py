"""Captions from an engine in the actor's own process: the serving engine, without the service."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ureca.captioning.source import ImageCaptions
from ureca.corpus.read import LoadedImage
from ureca.engine.config import EngineConfig
from ureca.engine.engine import CaptionEngine
from ureca.pipeline.engine_actor import EngineActor, end_process
from ureca.regions.rle import Rle


class EngineSource:
    """Caption source with its own engine; the first image starts it."""

    def __init__(
        self, export_dir: Path, config: EngineConfig, *, on_engine_death: Callable[[], None] = end_process
    ) -> None:
        """Check the export without starting the engine; `on_engine_death` as in `EngineActor`.

        Raises:
            CheckpointError: the folder is not an export, or its parts do not match.
        """
        self._engine = CaptionEngine(export_dir, **config.engine_options())
        self.load = self._engine.load
        self._actor = EngineActor(
            self._engine, model=f"model={export_dir}", section=config.section, on_engine_death=on_engine_death
        )

    @property
    def start_seconds(self) -> float:
        """Seconds that the engine took to start (see `CaptionSource`)."""
        return self._actor.start_seconds

    async def caption(self, image: LoadedImage, requests: Sequence[tuple[Rle, str]], max_tokens: int) -> ImageCaptions:
        """Caption all regions at once; the engine computes the image once (see `CaptionSource`)."""
        query = self._engine.prompts.processor.query
        async with self._actor.running():
            captions = await self._engine.caption(
                image.image,
                [segmentation for segmentation, _ in requests],
                [query(style) for _, style in requests],
                max_tokens=max_tokens,
            )
        return ImageCaptions(
            texts=tuple(caption.text for caption in captions),
            truncated=tuple(caption.finish_reason == "length" for caption in captions),
            prompt_tokens=sum(caption.prompt_tokens for caption in captions),
            completion_tokens=sum(caption.completion_tokens for caption in captions),
            cached_tokens=sum(caption.cached_tokens for caption in captions),
        )

    async def close(self) -> None:
        """End the engine."""
        await self._actor.close()
