"""Labeling job in which one image crashes every process that works on it; for labeling_faults.py."""

import functools
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import bootstrap  # noqa: F401

from ureca.config import load_config
from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.labeling import job
from ureca.labeling.config import LabelConfig
from ureca.labeling.worker import DescriberRecipe, LabelWorker
from ureca.pipeline.budget import Budget
from ureca.runs import Run, run_job


@dataclass(frozen=True, kw_only=True)
class FragileConfig(LabelConfig):
    """A labeling job, and the image that crashes its process."""

    poison: str = ""
    """Id of the image that crashes its process."""


class FragileWorker(LabelWorker):
    """Label worker that crashes on one image."""

    def __init__(self, recipe: DescriberRecipe, budget: Budget | None, share: float, *, poison: str) -> None:
        super().__init__(recipe, budget, share)
        self._poison = poison

    async def work(self, row: ManifestRow) -> ImageRow:
        """Exit on the poisoned image as a crash in native code would: without an exception."""
        if row.image_id == self._poison:
            os._exit(139)
        return await super().work(row)


def main() -> None:
    """Run the job."""
    config = load_config(FragileConfig, description=__doc__ or "")
    run = Run.start("label_corpus", config, directory=config.run_directory or None)
    plain = LabelConfig(**{option.name: getattr(config, option.name) for option in fields(LabelConfig)})
    job.label_corpus(plain, run.directory, make_worker=functools.partial(FragileWorker, poison=config.poison))


if __name__ == "__main__":
    run_job(main)
