"""Worker of a labeling job, and the describer it uses."""

import asyncio
import functools
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ureca.corpus.ground_truth import GroundTruth, has_ground_truth, read_ground_truth
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.errors import InputError
from ureca.labeling.config import LabelConfig
from ureca.labeling.describers.attributes import AttributesDescriber
from ureca.labeling.describers.base import Describer
from ureca.labeling.describers.openai import ChatDescriber
from ureca.labeling.describers.prompts import PromptSet
from ureca.labeling.describers.vllm import VllmDescriber
from ureca.labeling.image_labeler import ImageLabeler, Truth
from ureca.pipeline.budget import Budget
from ureca.pipeline.errors import JobStopped


@dataclass(frozen=True)
class DescriberRecipe:
    """Everything a describer needs, read by the driver: actors have neither its files nor its keys."""

    config: LabelConfig
    prompts: PromptSet | None
    api_key: str = field(default="", repr=False)

    @classmethod
    def read(cls, config: LabelConfig) -> "DescriberRecipe":
        """Load prompts and keys.

        Raises:
            ConfigError: the prompt set is unusable.
        """
        if config.describer == "attributes":
            return cls(config, None)
        return cls(config, PromptSet.load(config.prompts or config.preset), config.chat.api_key())

    def make(self, budget: Budget | None = None, share: float = 1.0) -> Describer:
        """Create the describer of a process that does `share` of the job. Nothing is started or sent yet."""
        if self.config.describer == "attributes":
            return AttributesDescriber()
        assert self.prompts is not None
        if self.config.describer == "vllm":
            return VllmDescriber(self.config.vllm, self.prompts)
        return ChatDescriber(self.config.chat, self.prompts, api_key=self.api_key, share=share, budget=budget)

    def check(self) -> None:
        """Check that the describer can answer at all.

        Raises:
            UrecaError: it can't.
        """

        async def check() -> None:
            describer = self.make()
            try:
                await describer.check()
            finally:
                await describer.close()

        asyncio.run(check())

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the captions, besides `LabelSettings`."""
        models = {"chat": self.config.chat.model, "vllm": self.config.vllm.model}
        return {
            "describer": self.config.describer,
            "model": models.get(self.config.describer),
            "prompt_version": self.prompts.version if self.prompts else AttributesDescriber.prompt_version,
        }


class LabelWorker:
    """Labels images in one actor."""

    def __init__(self, recipe: DescriberRecipe, budget: Budget | None, share: float) -> None:
        self._describer = recipe.make(budget, share)
        self._labeler = ImageLabeler(self._describer, recipe.config.settings())

    async def work(self, row: ManifestRow) -> ImageRow:
        """Return the image's row of the region table, labeled or quarantined.

        Raises:
            JobStopped: no image can be labeled for now, e.g. because the folder's ground truth is malformed.
        """
        try:
            truth = _true_attributes(row)
        except InputError as error:  # concerns all images of the folder
            raise JobStopped(str(error)) from error
        return await self._labeler.label(row, truth)

    def counts(self) -> Counter[str]:
        """Return no counts besides those in the rows."""
        return Counter()

    async def close(self) -> None:
        """Close the describer."""
        await self._describer.close()


def _true_attributes(row: ManifestRow) -> Truth | None:
    """Return the true attributes of an image's regions; None without ground truth."""
    folder, name = os.path.split(row.image_path)
    regions = _ground_truth_of(folder).get(os.path.splitext(name)[0])
    return regions and {region_id: region["attributes"] for region_id, region in regions.items()}


@functools.lru_cache(maxsize=4)
def _ground_truth_of(folder: str) -> GroundTruth:
    return read_ground_truth(folder) if has_ground_truth(folder) else {}
