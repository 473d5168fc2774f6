"""Worker of a captioning job: read an image, take or build its mask tree, caption its regions.

    read      image and masks; proposed masks where there are none
    tree      mask tree; regions of a region table keep theirs
    caption   all regions in all styles at once

One image is one row and one call, so its regions share the image prefix. Images are prepared one at a time, as in
labeling, while the engine works on others.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from ureca.captioning.config import CaptionConfig
from ureca.captioning.recipe import CaptionRecipe
from ureca.captioning.source import CaptionSource, ImageCaptions
from ureca.corpus.read import LoadedImage
from ureca.corpus.schema import ImageRow, Provenance, RegionRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.errors import CheckpointError, StorageError, UrecaError
from ureca.pipeline.budget import Budget
from ureca.pipeline.errors import JobStopped
from ureca.pipeline.flags import NOT_UNIQUE, UnusableAnswerError, repeated_captions
from ureca.pipeline.load import ImageLoader

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FIELDS = {"brief": "short_caption", "detailed": "long_caption", "unique": "caption"}

CUT_OFF = "cut_off"
"""Flag of a region with a caption truncated at `max_tokens`."""
EMPTY = "empty"
"""Flag of a region with an empty caption."""


class CaptionWorker:
    """Captions images in one actor."""

    def __init__(self, recipe: CaptionRecipe, budget: Budget | None, share: float) -> None:
        del budget, share  # an engine costs its time, not its tokens
        self._recipe = recipe
        self._source: CaptionSource = recipe.make()
        self._loader = ImageLoader(self._config.image_settings())
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._counts: Counter[str] = Counter()
        self._start_seconds = 0.0

    @property
    def _config(self) -> CaptionConfig:
        return self._recipe.config

    async def work(self, row: ManifestRow) -> ImageRow:
        """Return the image's row of the region table, captioned or quarantined.

        Raises:
            JobStopped: neither this nor any other image can be captioned for now.
            CheckpointError: the model is damaged.
        """
        # Read, build the tree, caption.
        started_at, step = time.monotonic(), "read"
        try:
            loaded = await self._in_thread(lambda: self._loader.read(row))
            step = "tree"
            regions, notes = await self._in_thread(lambda: self._regions(loaded))
            step = "caption"
            requests = [(region.segmentation, style) for region in regions for style in self._config.styles]
            sent_at = time.monotonic()
            captions = ImageCaptions()
            if requests:
                captions = await self._source.caption(loaded, requests, self._config.max_tokens)
            if requests and not any(captions.texts):
                raise UnusableAnswerError(f"{row.image_path}: all captions of its {len(regions)} regions are empty.")
        except (JobStopped, StorageError, CheckpointError):  # not the image's fault
            raise
        except Exception as error:
            if not isinstance(error, UrecaError):
                logger.exception("image %s failed in step %s", row.image_id, step)
            return ImageRow.quarantined(row.image_id, row.image_path, step, error)
        # Counts and the image's row.
        self._counts["engine:prompt_tokens"] += captions.prompt_tokens
        self._counts["engine:cached_tokens"] += captions.cached_tokens
        now = time.monotonic()
        return ImageRow(
            image_id=row.image_id,
            image_path=row.image_path,
            height=loaded.size[0],
            width=loaded.size[1],
            status="labeled",
            regions=self._captioned(regions, captions),
            provenance=Provenance(
                describer="captioner",
                model=self._recipe.model,
                prompt_version=self._recipe.prompt_version,
                prompt_tokens=captions.prompt_tokens,
                completion_tokens=captions.completion_tokens,
                seconds=round(now - started_at, 4),
                requests=dict.fromkeys(self._config.styles, len(regions)) if regions else None,
                describer_seconds=round(now - sent_at, 4),
            ),
            notes=notes,
        )

    def counts(self) -> Counter[str]:
        """Return engine utilization and cache use since the last call."""
        busy = self._source.load.take()
        counts, self._counts = self._counts, Counter()
        counts["engine:start_milliseconds"] = round(1000 * (self._source.start_seconds - self._start_seconds))
        self._start_seconds = self._source.start_seconds
        counts["engine:milliseconds"] = round(1000 * busy.seconds)
        counts["engine:busy_milliseconds"] = round(1000 * busy.busy_seconds)
        counts["engine:region_milliseconds"] = round(1000 * busy.region_seconds)
        return counts

    async def close(self) -> None:
        """End the engine, or the connection to the service."""
        self._thread.shutdown(wait=False)
        await self._source.close()

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _regions(self, loaded: LoadedImage) -> tuple[tuple[RegionRow, ...], dict[str, int]]:
        if loaded.regions is not None:
            return loaded.regions, dict(loaded.notes)
        tree, notes = self._loader.tree(loaded)
        return tuple(RegionRow.of(region) for region in tree.regions), notes

    def _captioned(self, regions: tuple[RegionRow, ...], captions: ImageCaptions) -> tuple[RegionRow, ...]:
        """Return the regions with their captions, which `captions` holds region by region, each in all styles."""
        styles = self._config.styles
        texts = {style: captions.texts[index :: len(styles)] for index, style in enumerate(styles)}
        repeated = repeated_captions(texts.get("unique", (None,) * len(regions)))
        captioned = []
        for index, region in enumerate(regions):
            fields: dict[str, Any] = {_FIELDS[style]: texts[style][index] or None for style in styles}
            first = index * len(styles)
            flags = {
                NOT_UNIQUE: repeated[index],
                CUT_OFF: any(captions.truncated[first : first + len(styles)]),
                EMPTY: None in fields.values(),
            }
            active = tuple(flag for flag, is_set in flags.items() if is_set)
            captioned.append(replace(region, flags=active, **fields))
        return tuple(captioned)
