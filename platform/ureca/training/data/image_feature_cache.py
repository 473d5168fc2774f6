"""Cache of image features: the vision tower is frozen, so each image is encoded once while memory lasts.

Entries are never evicted. Every epoch visits each image once, in a new order, so evicting the least recently used entry
would evict the one needed next.

All entries share one allocation, which the system backs as it fills. Separate allocations would lie between the
temporary tensors of training steps and keep their memory from being freed.
"""

import mmap

import torch
from torch import Tensor

from ureca.model.captioner import Captioner

_ALIGNMENT = 64
"""Bytes: a cache line, and a multiple of every element size."""


class ImageFeatureCache:
    """Image features by image id: `(T, 256, D)`, on the CPU.

    One thread computes features; other threads may query which images are cached.
    """

    def __init__(self, captioner: Captioner, *, budget_bytes: int) -> None:
        """Create an empty cache of at most `budget_bytes` (1 or more)."""
        self._captioner = captioner
        self._memory = torch.frombuffer(mmap.mmap(-1, budget_bytes), dtype=torch.uint8)
        self._used = 0
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Number of cached images."""
        return len(self._kept)

    def __contains__(self, image_id: str) -> bool:
        """Return whether an image is cached, so that its pixels need not be read."""
        return image_id in self._kept

    def __call__(self, image_id: str, pixels: Tensor | None) -> Tensor:
        """Return the image's features, in the dtype of autocast or of the weights.

        Images are always encoded one at a time: batching changes the last bits, and a resumed training would then
        differ from an uninterrupted one.

        Args:
            pixels: `(T, 3, tile, tile)` from the processor; None only for a cached image.
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
