"""Feature vectors of regions, to find those that a caption may be mistaken for.

    measured   colors, size, elongation and outline, as measured for the attributes; no model
    dinov2     class token of a DINOv2 on the region's crop, with everything outside the region blurred

    features = make_features(FeatureConfig(kind="dinov2"))       # once per process: it may hold a model
    rows = features(image, segmentations, attributes)            # (R, F), for `find_distractors`

Source: URECA (arXiv 2504.05305) section 3, DINO features of the blurred crop. Deviation from the authors' code: their
center crop cuts off the ends of long regions; here the entire crop is fitted in and padded with gray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ureca.attributes.measure import RegionAttributes
from ureca.devices import choose_device
from ureca.errors import CheckpointError, ConfigError
from ureca.labeling.describers.views import ViewConfig, crop_view
from ureca.regions.rle import Rle

Features = Callable[[np.ndarray, Sequence[Rle], Sequence[RegionAttributes]], np.ndarray]
"""(image uint8 (H, W, 3) RGB, R segmentations, R attributes) -> float (R, F), rows of length 1."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Features that compare regions."""

    kind: Literal["measured", "dinov2"] = "measured"
    """measured: colors, size and outline, without a model. dinov2: a DINOv2 on the regions' crops."""
    model: str = "facebook/dinov2-base"
    """Hub name or folder of a DINOv2, DINOv3 or DINO for transformers; kind dinov2 only."""
    device: str = ""
    """cpu, cuda or cuda:1. Empty: the GPU that Ray assigned to the process, else the CPU."""
    batch_size: int = 64
    """Crops per forward of the model."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"features.batch_size={self.batch_size}: must be at least 1")


def make_features(config: FeatureConfig) -> Features:
    """Create the features of the configured kind.

    Raises:
        CheckpointError: the model can't be loaded.
    """
    return DinoFeatures(config) if config.kind == "dinov2" else _measured


def _measured(image: np.ndarray, segmentations: Sequence[Rle], attributes: Sequence[RegionAttributes]) -> np.ndarray:  # noqa: ARG001
    return np.stack([region.features for region in attributes]) if attributes else np.empty((0, 1))


class DinoFeatures:
    """Features from the class token of a vision transformer, loaded in this process."""

    def __init__(self, config: FeatureConfig) -> None:
        """Load the model.

        Raises:
            CheckpointError: the model is missing, or has no class token.
        """
        from ureca.torchvision_ops import declare_missing_operators

        declare_missing_operators()
        import torch
        from transformers import AutoImageProcessor, AutoModel

        device = choose_device(config.device, name="features.device")
        try:
            processor = AutoImageProcessor.from_pretrained(config.model)
            self._model = AutoModel.from_pretrained(config.model).to(device).eval()
            if not hasattr(self._model.embeddings, "cls_token"):
                raise ValueError(f"a {type(self._model).__name__} has no class token")
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"features.model={config.model}: can't be loaded on {device} ({str(error).strip().splitlines()[0]}). "
                "Set it to the hub name or folder of a DINOv2, e.g. facebook/dinov2-base, or set "
                "features.kind=measured."
            ) from error
        crop, size = getattr(processor, "crop_size", None) or {}, processor.size
        self._side = crop.get("height") or size.get("height") or size.get("shortest_edge")
        self._mean = torch.tensor(processor.image_mean, device=device)[:, None, None]
        self._std = torch.tensor(processor.image_std, device=device)[:, None, None]
        self._batch_size = config.batch_size

    def __call__(
        self,
        image: np.ndarray,
        segmentations: Sequence[Rle],
        attributes: Sequence[RegionAttributes],  # noqa: ARG002
    ) -> np.ndarray:
        """Return float32 (R, F), rows of length 1, for an image uint8 (H, W, 3) RGB; `attributes` are ignored."""
        import torch

        rows = [np.empty((0, self._model.config.hidden_size), np.float32)]
        for first in range(0, len(segmentations), self._batch_size):
            crops = [self._crop(image, rle) for rle in segmentations[first : first + self._batch_size]]
            # bytes are copied to the device, a quarter of the size of floats
            pixels = torch.from_numpy(np.stack(crops)).to(self._mean.device).permute(0, 3, 1, 2)
            with torch.inference_mode():
                tokens = self._model(pixel_values=(pixels / 255 - self._mean) / self._std).last_hidden_state[:, 0]
                rows.append(torch.nn.functional.normalize(tokens.float(), dim=-1).cpu().numpy())
        return np.concatenate(rows)

    def _crop(self, image: np.ndarray, segmentation: Rle) -> np.ndarray:
        """Return uint8 (side, side, 3): the region's box centered, outside of the region blurred, padded with the mean
        color."""
        view = crop_view(image, segmentation, ViewConfig(longest_px=self._side, margin=0.0, margin_px=0))
        mean = (255 * self._mean.flatten()).round().int().tolist()
        canvas = Image.new("RGB", (self._side, self._side), tuple(mean))
        canvas.paste(view, ((self._side - view.width) // 2, (self._side - view.height) // 2))
        return np.asarray(canvas)
