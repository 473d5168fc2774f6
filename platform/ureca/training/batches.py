"""What a worker is fed: the packed batches of each step, its share of them.

step k  ->  visits (index.py)  ->  examples (examples.py)  ->  packed batches, one for each forward pass
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import load_image
from ureca.model import Captioner, CaptionerProcessor, Example, PackedBatch, pack
from ureca.training.examples import make_example
from ureca.training.image_tokens import ImageTokens
from ureca.training.index import StepIndex, Visit
from ureca.training.pairs import make_pairs
from ureca.training.plan import Plan

__all__ = ["Batches"]


class Batches:
    """The batches of one worker of a plan, step by step."""

    def __init__(self, plan: Plan, *, rank: int, num_workers: int) -> None:
        """Open the plan's table.

        Raises:
            InputError: there is no such table, or nothing in it to learn from.
        """
        self.plan, self.rank, self.num_workers = plan, rank, num_workers
        self._images = plan.images()
        self._index = StepIndex(
            num_images=len(self._images), images_per_step=plan.batch.images_per_step, seed=plan.seed
        )
        self._image_of: Callable[[ImageRow], np.ndarray | Tensor] = load_image

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self._index.num_steps(self.plan.optimizer.epochs)

    @property
    def passes_per_step(self) -> int:
        """Forward passes of this worker in a step; every worker has as many."""
        return len(self._passes(0))

    def keep_image_tokens(self, captioner: Captioner) -> None:
        """Compute image tokens once for each image and keep them, where the plan gives memory for it.

        The captioner's weights must be in the type they will be used in.
        """
        workers = self.plan.workers
        if workers.image_tokens_mb and workers.zero_stage < 3:
            self._image_of = ImageTokens(captioner, budget_bytes=workers.image_tokens_mb * 2**20)

    def of_step(self, step: int, captioner: Captioner) -> list[PackedBatch]:
        """This worker's batches of a step (counted from 0), on the CPU, one for each forward pass.

        Raises:
            ImageError: an image is missing, truncated, or not of the size that the table says.
            InputError: a region has no caption.
        """
        processor = captioner.processor
        return [
            pack([self._example(visit, processor) for visit in visits], processor, **captioner.pack_options())
            for visits in self._passes(step)
        ]

    def _example(self, visit: Visit, processor: CaptionerProcessor) -> Example:
        plan, row = self.plan, self._images[visit.image]
        shown: dict[str, Any] = {
            "regions_per_image": plan.batch.regions_per_image,
            "seed": plan.seed,
            "image_of": self._image_of,
        }
        if plan.preference is not None:
            return make_pairs(row, visit, processor, rejected_per_region=plan.preference.rejected_per_region, **shown)
        return make_example(row, visit, processor, cue=plan.cue, **shown)

    def _passes(self, step: int) -> list[list[Visit]]:
        return self._index.passes(
            step,
            rank=self.rank,
            num_workers=self.num_workers,
            images_per_device=self.plan.batch.images_per_device,
        )
