"""Propose masks for photos without masks.

proposer = make_proposer(ProposalConfig(kind="sam"))    # once per process: it may hold a model
masks = proposer(image)                                 # thread-safe
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from ureca.proposals.config import ProposalConfig
from ureca.proposals.segments import propose_segments
from ureca.regions.tree import Mask

Proposer = Callable[[np.ndarray], list[Mask]]
"""Returns masks of an image, uint8 (H, W, 3) RGB, largest first; ids count from "1". They may nest and overlap."""


def make_proposer(config: ProposalConfig) -> Proposer:
    """Return the proposer of the configured kind.

    Raises:
        CheckpointError: its model can't be loaded.
    """
    if config.kind == "sam":
        from ureca.proposals.sam import SamProposer  # imports torch and transformers

        return SamProposer(config)
    return partial(propose_segments, config=config)
