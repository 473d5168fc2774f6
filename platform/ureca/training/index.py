"""Which images, regions and captions a step trains on, from seed and step alone, for any number of workers.

    stream of images   [ epoch 0, shuffled by its seed | epoch 1, shuffled by its seed | ... ]
    step k             images k*B .. (k+1)*B - 1 of the stream, B = images_per_step
    rank r of W        the r-th of W equal slices of the step's images, sorted by their numbers: an image then mostly
                       comes back to the worker that has its image tokens
    passes             the slice, `images_per_device` images at a time (gradient accumulation)

So the step number alone says where to go on after an interruption, every image comes once per epoch, and a
step may hold the end of one epoch and the start of the next. Which of an image's regions are shown, and which
of a region's three captions is asked for, is drawn from (seed, epoch, image, region).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["STYLES", "StepIndex", "Visit", "choose_regions", "choose_style"]

STYLES = ("brief", "detailed", "unique")
"""Query styles, in the order of `short_caption`, `long_caption`, `caption` of the region table."""

STYLE_WEIGHTS = (1, 1, 2)
"""How often each is asked for: `unique` is what a captioner is for, and what it is scored by."""


@dataclass(frozen=True)
class Visit:
    """One image's turn: its number in the order of image ids, and the epoch, which seeds the draws."""

    image: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class StepIndex:
    """The images of every step.

    Args:
        num_images: images in the table.
        images_per_step: B, over all workers.
        seed: of the shuffles.
    """

    num_images: int
    images_per_step: int
    seed: int

    def num_steps(self, epochs: float) -> int:
        """Optimizer steps of so many passes over the images, at least one."""
        return max(1, math.ceil(round(epochs * self.num_images, 6) / self.images_per_step))

    def visits(self, step: int) -> list[Visit]:
        """The images of a step, all workers together."""
        first = step * self.images_per_step
        visits = []
        for position in range(first, first + self.images_per_step):
            epoch, place = divmod(position, self.num_images)
            visits.append(Visit(image=int(_order(self.num_images, self.seed, epoch)[place]), epoch=epoch))
        return visits

    def passes(self, step: int, *, rank: int, num_workers: int, images_per_device: int) -> list[list[Visit]]:
        """The images of a step that one worker takes, in the portions that it packs into one forward pass.

        `images_per_step` must be a multiple of `num_workers`: every worker then has equally many passes.
        """
        share, rest = divmod(self.images_per_step, num_workers)
        assert rest == 0, (self.images_per_step, num_workers)
        visits = sorted(self.visits(step), key=lambda visit: (visit.image, visit.epoch))
        mine = visits[rank * share : (rank + 1) * share]
        return [mine[i : i + images_per_device] for i in range(0, share, images_per_device)]


@lru_cache(maxsize=4)
def _order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def choose_regions(region_ids: Sequence[str], limit: int, *, seed: int, epoch: int, image_id: str) -> list[int]:
    """Positions of at most `limit` regions, in their own order. Which ones differs from epoch to epoch."""
    if len(region_ids) <= limit:
        return list(range(len(region_ids)))
    draw = random.Random(f"regions/{seed}/{epoch}/{image_id}")
    return sorted(draw.sample(range(len(region_ids)), limit))


def choose_style(*, seed: int, epoch: int, image_id: str, region_id: str) -> str:
    """The style that a region is asked for in an epoch."""
    return random.Random(f"style/{seed}/{epoch}/{image_id}/{region_id}").choices(STYLES, STYLE_WEIGHTS)[0]
