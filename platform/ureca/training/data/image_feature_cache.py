"""Image tokens of the frozen vision tower, computed once for each image and kept while there is room.

What came first stays. Every image comes once an epoch, in another order each time: throwing out what was used least
recently would throw out just what is about to come.

They are kept in one piece of memory, taken from the system as it fills: each in its own, they would lie between the
passing tensors of the training steps and keep the memory around them from being given back.
"""

import mmap

import torch
from torch import Tensor

from ureca.model.captioner import Captioner

_ALIGNMENT = 64
"""Bytes: a cache line, and a multiple of every element's size."""


class ImageFeatureCache:
    """Gives the image tokens of images by their ids: `(T, 256, D)`, on the CPU.

    One thread computes; others may ask meanwhile what is kept, for what is kept stays.
    """

    def __init__(self, captioner: Captioner, *, budget_bytes: int) -> None:
        """`budget_bytes`: what the kept tokens may take, 1 or more."""
        self._captioner = captioner
        self._memory = torch.frombuffer(mmap.mmap(-1, budget_bytes), dtype=torch.uint8)
        self._used = 0
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Images kept."""
        return len(self._kept)

    def __contains__(self, image_id: str) -> bool:
        """Whether the tokens of an image are kept, so that its pixels need not be read."""
        return image_id in self._kept

    def __call__(self, image_id: str, pixels: Tensor | None) -> Tensor:
        """The image's tokens, in the type that autocast or the weights say.

        An image is always computed by itself: what it is batched with would change the last bits, and with them a
        training that goes on after an interruption.

        Args:
            pixels: `(T, 3, tile, tile)` of the processor; None only where the tokens are kept.
        """
        if image_id in self._kept:
            return self._kept[image_id]
        assert pixels is not None, image_id
        base = self._captioner.base
        tokens = self._captioner.image_features(pixels.to(base.device, base.dtype)).to("cpu")
        size = tokens.numel() * tokens.element_size()
        if self._used + size <= len(self._memory):
            place = self._memory[self._used : self._used + size].view(tokens.dtype).view(tokens.shape)
            self._kept[image_id] = place.copy_(tokens)
            self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return tokens
