"""What a worker is fed: the packed batches of each step, its share of them.

step k  ->  visits (index.py)  ->  examples (examples.py)  ->  packed batches, one for each forward pass
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import load_image
from ureca.model import Captioner, PackedBatch, pack
from ureca.training.examples import LabeledImages, make_example
from ureca.training.image_tokens import ImageTokens
from ureca.training.index import StepIndex, Visit
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
        self._images = LabeledImages(plan.table, heldout=plan.heldout, heldout_seed=plan.heldout_seed)
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
        plan, processor = self.plan, captioner.processor
        batches = []
        for visits in self._passes(step):
            examples = [
                make_example(
                    self._images[visit.image],
                    visit,
                    processor,
                    cue=plan.cue,
                    regions_per_image=plan.batch.regions_per_image,
                    seed=plan.seed,
                    image_of=self._image_of,
                )
                for visit in visits
            ]
            batches.append(pack(examples, processor, **captioner.pack_options()))
        return batches

    def _passes(self, step: int) -> list[list[Visit]]:
        return self._index.passes(
            step,
            rank=self.rank,
            num_workers=self.num_workers,
            images_per_device=self.plan.batch.images_per_device,
        )
