"""Reference model for preference tuning: the captioner as it was before tuning, on the same base.

Training changes little: LoRA's adapter, and the mask encoder if it trains. A frozen copy of only these is the
reference. It is exact (the same code runs over it), needs no second base in memory, and is part of the module, so
DeepSpeed places, casts and partitions it like everything else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from ureca.model.captioner import Captioner

_ADAPTER = "reference"
_MASK_ENCODER = "reference_mask_encoder"


def keep_reference(captioner: Captioner) -> None:
    """Keep a frozen copy of the parts that tuning changes; call it once, after `Captioner.trainable`.

    Dropout is disabled from here on: its random draws would separate the two before anything has been learned.
    """
    (peft_model,) = captioner._peft
    peft_model.add_adapter(_ADAPTER, peft_model.peft_config["default"])
    set_peft_model_state_dict(peft_model, get_peft_model_state_dict(peft_model), adapter_name=_ADAPTER)
    for name, parameter in captioner.named_parameters():
        if f".{_ADAPTER}." in name:
            parameter.requires_grad_(False)
    if any(parameter.requires_grad for parameter in captioner.mask_encoder.parameters()):
        captioner.add_module(_MASK_ENCODER, copy.deepcopy(captioner.mask_encoder).requires_grad_(False))
    captioner.eval()


@contextmanager
def as_reference(captioner: Captioner) -> Iterator[None]:
    """Run the captioner as it was at `keep_reference`, without gradients, inside the block."""
    layers = [module for module in captioner.base.modules() if isinstance(module, BaseTunerLayer)]
    modules = captioner._modules
    tuned = modules["mask_encoder"]
    # Not peft's `set_adapter`: it would also enable and disable training.
    for layer in layers:
        layer._active_adapter = [_ADAPTER]
    modules["mask_encoder"] = modules.get(_MASK_ENCODER, tuned)
    try:
        with torch.no_grad():
            yield
    finally:
        modules["mask_encoder"] = tuned
        for layer in layers:
            layer._active_adapter = ["default"]
