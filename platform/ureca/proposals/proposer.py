"""Masks for photos that come without masks.

proposer = make_proposer(ProposalConfig(kind="sam"))    # once per process: it may hold a model
masks = proposer(image)                                 # as often as there are photos, from any thread
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from ureca.proposals.config import ProposalConfig
from ureca.proposals.segments import propose_segments
from ureca.regions.tree import Mask

Proposer = Callable[[np.ndarray], list[Mask]]
"""Masks of an image, uint8 (H, W, 3) RGB, largest first; ids count from "1". They may nest and overlap."""


def make_proposer(config: ProposalConfig) -> Proposer:
    """The proposer of that kind.

    Raises:
        CheckpointError: its model can't be loaded.
    """
    if config.kind == "sam":
        from ureca.proposals.sam import SamProposer  # brings torch and transformers

        return SamProposer(config)
    return partial(propose_segments, config=config)
