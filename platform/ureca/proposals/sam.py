"""Region proposals from a model of the SAM family, prompted with a grid of points.

transformers' mask generation prompts the model in batches of points and filters masks by predicted IoU and stability.
Its final step is replaced: it drops masks by the IoU of their boxes, which loses parts that fill their whole's box, and
decodes every mask into an image. Here masks stay run lengths and are compared directly. Source: Segment Anything (arXiv
2304.02643) sections 4 and 5, SAM 2 (arXiv 2408.00714); facebookresearch/sam2 sam2/automatic_mask_generator.py for the
thresholds.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ureca.devices import choose_device
from ureca.errors import CheckpointError
from ureca.proposals.choose import choose_masks
from ureca.proposals.config import ProposalConfig
from ureca.regions.rle import check_rle
from ureca.regions.tree import Mask
from ureca.torchvision_ops import declare_missing_operators

declare_missing_operators()

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import pipeline  # noqa: E402
from transformers.pipelines import MaskGenerationPipeline  # noqa: E402


class SamProposer:
    """Mask proposer with one model in this process; thread-safe."""

    def __init__(self, config: ProposalConfig) -> None:
        """Load the model.

        Raises:
            CheckpointError: it does not exist, or does not support mask generation.
        """
        self._config = config
        sam = config.sam
        device = choose_device(sam.device, name="proposals.sam.device")
        try:
            self._generate: Any = pipeline(
                "mask-generation", model=sam.model, device=device, pipeline_class=_RunLengths
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"proposals.sam.model={sam.model}: can't be loaded for mask generation on {device} "
                f"({str(error).strip().splitlines()[0]}). Give the hub name or the folder of a SAM or SAM 2 model "
                "that transformers reads, e.g. facebook/sam2.1-hiera-large, or proposals.kind=segments."
            ) from error
        # The model's memory is sized for one image; other work on an image may run in parallel.
        self._one_at_a_time = threading.Lock()

    def __call__(self, image: np.ndarray) -> list[Mask]:
        """Return masks of an image, uint8 (H, W, 3) RGB, largest first; ids count from "1"."""
        sam = self._config.sam
        with self._one_at_a_time:
            found = self._generate(
                Image.fromarray(image),
                points_per_crop=sam.points_per_side,
                points_per_batch=sam.points_per_batch,
                pred_iou_thresh=sam.min_iou,
                stability_score_thresh=sam.min_stability,
            )
        best_first = [rle for rle, _ in sorted(found, key=lambda each: -each[1]) if any(rle["counts"][1::2])]
        size = (image.shape[0], image.shape[1])
        checked = (check_rle(rle, size, where=self._config.sam.model) for rle in best_first)
        return choose_masks(checked, self._config)


class _RunLengths(MaskGenerationPipeline):
    """Mask generation that returns (uncompressed RLE, predicted IoU) of each mask that passed the filters."""

    image_processor: Any

    def preprocess(self, image: Image.Image, **settings: Any) -> Any:  # type: ignore[override]  # no other kind of input
        """Yield the prompts batch by batch, with points in the model's coordinates.

        transformers 5.19 scales the grid like SAM's images, by the longer side. SAM 2's images are stretched to a
        square, so a third of a 3:2 photo would get no prompts.
        """
        side = self.image_processor.size.get("longest_edge", self.image_processor.size.get("height"))
        scaled = [int(length * side / max(image.size) + 0.5) for length in image.size]
        for inputs in super().preprocess(image, **settings):
            if "reshaped_input_sizes" not in inputs:  # no padding: stretched to a square
                inputs["input_points"] = inputs["input_points"] * torch.tensor([side / length for length in scaled])
            yield inputs

    def postprocess(  # type: ignore[override]  # another result is the point of it
        self, model_outputs: list[dict[str, Any]], **_: Any
    ) -> list[tuple[dict[str, Any], float]]:
        return [
            (rle, float(score))
            for output in model_outputs
            for rle, score in zip(output["masks"], output["iou_scores"], strict=True)
        ]
