"""What the actors of a labeling job do with an image, and the describer they do it with."""

import asyncio
import functools
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ureca.corpus.ground_truth import GroundTruth, has_ground_truth, read_ground_truth
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.labeling.config import LabelConfig
from ureca.labeling.describers.attributes import AttributesDescriber
from ureca.labeling.describers.base import Describer
from ureca.labeling.describers.openai import ChatDescriber
from ureca.labeling.describers.prompts import PromptSet
from ureca.labeling.describers.vllm import VllmDescriber
from ureca.labeling.image_labeler import ImageLabeler, Truth
from ureca.pipeline.budget import Budget


@dataclass(frozen=True)
class DescriberRecipe:
    """All that a describer is made from, read where the job is started: actors have neither its files nor its keys."""

    config: LabelConfig
    prompts: PromptSet | None
    api_key: str = field(default="", repr=False)

    @classmethod
    def read(cls, config: LabelConfig) -> "DescriberRecipe":
        """Load prompts and keys.

        Raises:
            ConfigError: a prompt set that can't be used.
        """
        if config.describer == "attributes":
            return cls(config, None)
        return cls(config, PromptSet.load(config.prompts or config.preset), config.chat.api_key())

    def make(self, budget: Budget | None = None, share: float = 1.0) -> Describer:
        """The describer of a process that is `share` of the job. Nothing is started or sent yet."""
        if self.config.describer == "attributes":
            return AttributesDescriber()
        assert self.prompts is not None
        if self.config.describer == "vllm":
            return VllmDescriber(self.config.vllm, self.prompts)
        return ChatDescriber(self.config.chat, self.prompts, api_key=self.api_key, share=share, budget=budget)

    def check(self) -> None:
        """Find out whether the describer can answer at all.

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
        """What captions depend on, beside the walk."""
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
        """The image's row of the region table, labeled or set aside.

        Raises:
            JobStopped: no image can be labeled for now.
        """
        return (await self._labeler.label(row, _true_attributes(row))).row

    def counts(self) -> Counter[str]:
        """Nothing beside what the rows say."""
        return Counter()

    async def close(self) -> None:
        """Let go of the describer."""
        await self._describer.close()


def _true_attributes(row: ManifestRow) -> Truth | None:
    """Return the true attributes of an image's regions; None without ground truth."""
    folder, name = os.path.split(row.image_path)
    regions = _ground_truth_of(folder).get(os.path.splitext(name)[0])
    return regions and {region_id: region["attributes"] for region_id, region in regions.items()}


@functools.lru_cache(maxsize=4)
def _ground_truth_of(folder: str) -> GroundTruth:
    return read_ground_truth(folder) if has_ground_truth(folder) else {}
