"""Build vLLM prompts from an image, its regions and queries.

    sent             [ <|im_start|>user\\n IMG_CONTEXT \\n | pad              | branch_ids(query) ]
    vLLM expands     [ prefix_ids(num_tiles)             | pad x mask rows  | branch_ids(query) ]

The image is sent as an image, so vLLM's own InternVL processor tiles it; the mask rows are prompt embeddings in the
middle. Everything before the mask is identical for all regions of an image, so the first region's KV cache serves the
others. Ids are sent instead of a chat, so no chat template of an export can change the trained sequence. Shapes: M rows
of mask tokens (delimiters included), D hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ureca.errors import CheckpointError, InputError
from ureca.model.captioner import MASK_ENCODER_FILE, CaptionerConfig
from ureca.model.mask_encoder import MaskEncoder
from ureca.model.processor import CaptionerProcessor
from ureca.regions.rle import Rle
from ureca.regions.tiles import with_thumbnail


@dataclass(frozen=True)
class ImagePrompt:
    """Data that the regions of one image share."""

    image: Image.Image
    """RGB."""
    digest: str
    """SHA-256 of size and pixels: vLLM's cache key of the processed image and its KV blocks."""
    prefix_ids: list[int]
    """Token ids before the mask, image placeholders expanded: vLLM must arrive at the same ids."""


@dataclass(frozen=True)
class RegionPrompt:
    rows: Tensor | None
    """(M, D) float32 mask tokens with delimiters, on the CPU; None: no region cue."""
    branch_ids: list[int]
    """Token ids after the mask."""


class PromptBuilder:
    """Holds an export's mask encoder, processor and configuration."""

    def __init__(self, export_dir: str | Path) -> None:
        """Load them. Raises CheckpointError if the folder is not an export of a captioner."""
        directory = Path(export_dir)
        self.config = CaptionerConfig.load(directory)
        if not (directory / "config.json").is_file():
            raise CheckpointError(
                f"{directory}: is a model directory, which refers to the base's weights; serving needs an export, "
                "written by jobs/export.py or ureca.model.exporting.export.export(model_dir, out_dir)"
            )
        base = json.loads((directory / "config.json").read_text())
        width = base.get("text_config", {}).get("hidden_size")
        if width != self.config.mask.hidden_size:
            raise CheckpointError(
                f"{directory}: its language model has width {width}, its mask encoder {self.config.mask.hidden_size}; "
                "the files are from two models, export again"
            )
        self.processor = CaptionerProcessor.from_captioner(str(directory), tile_limit=self.config.tile_limit)
        self._encoder = MaskEncoder(self.config.mask)
        path = directory / MASK_ENCODER_FILE
        try:
            self._encoder.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: does not match the captioner_config.json next to it ({error}); export the model again"
            ) from error
        self._encoder.eval().requires_grad_(False)

    @cached_property
    def placeholder_id(self) -> int:
        """Token at mask positions: padding, which no prompt contains and every vocabulary has.

        vLLM's chat route appends a new token to the vocabulary instead. InternVL's checkpoints, whose embeddings end
        with the tokenizer's last id, refuse it as out of vocabulary.
        """
        pad = self.processor.tokenizer.pad_token_id
        if pad is None or pad == self.processor.end_token_id:
            raise CheckpointError(
                "the export's tokenizer has no padding token, which is used at mask positions; set pad_token in the "
                "base's tokenizer_config.json and export the model again"
            )
        return int(pad)

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        decoder: Any = self.processor.tokenizer.added_tokens_decoder
        return tuple(token.content for token in decoder.values() if token.special)

    def image(self, image: np.ndarray | Image.Image) -> ImagePrompt:
        """Prepare an image: (H, W, 3) uint8 RGB, or a PIL image, converted to RGB."""
        picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
        columns, rows = self.processor.grid((picture.height, picture.width))
        num_tiles = with_thumbnail(columns * rows)
        digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        return ImagePrompt(picture, digest, self.processor.prefix_ids(num_tiles))

    def fault(self, query: str) -> str | None:
        """Return the fault of a query that holds a control token; None if it is valid."""
        held = next((token for token in self._control_tokens if token in query), None)
        return held and f"a question holds {held!r}, a control token of the model. Ask without it."

    def regions(self, segmentations: Sequence[Rle | None], queries: Sequence[str]) -> list[RegionPrompt]:
        """Build one prompt per region of an image. All segmentations must have the image's size.

        Raises:
            InputError: a query holds a control token of the model, which would change the prompt's structure.
        """
        for query in queries:
            if fault := self.fault(query):
                raise InputError(fault)
        rows = iter(self._mask_rows([rle for rle in segmentations if rle is not None]))
        return [
            RegionPrompt(None if rle is None else next(rows), self.processor.branch_ids(query))
            for rle, query in zip(segmentations, queries, strict=True)
        ]

    def token_ids(self, image: ImagePrompt, region: RegionPrompt) -> list[int]:
        """Return the sequence as the model sees it."""
        num_rows = 0 if region.rows is None else len(region.rows)
        return image.prefix_ids + [self.placeholder_id] * num_rows + region.branch_ids

    def sent_ids(self, image: ImagePrompt, region: RegionPrompt) -> list[int]:
        """Return the sequence with one token for the image and one for the mask; vLLM expands both."""
        tokenizer: Any = self.processor.tokenizer
        prefix = image.prefix_ids
        first = prefix.index(tokenizer.convert_tokens_to_ids("<img>"))
        last = prefix.index(tokenizer.convert_tokens_to_ids("</img>"))
        mask = [] if region.rows is None else [self.placeholder_id]
        return [
            *prefix[:first],
            self.processor.image_token_id,
            *prefix[last + 1 :],
            *mask,
            *region.branch_ids,
        ]

    @torch.inference_mode()
    def _mask_rows(self, segmentations: Sequence[Rle]) -> list[Tensor]:
        rows: list[Tensor] = self._encoder([self.processor.mask_tiles(rle) for rle in segmentations])
        for row in rows:
            check_rows(row, self.config.mask.hidden_size)
        return rows


def check_rows(rows: Tensor, hidden_size: int) -> None:
    """Refuse rows that vLLM does not check: a wrong width kills its engine for everybody, NaN gives nonsense.

    Raises:
        CheckpointError: the rows are not (M, hidden_size) finite floats with M >= 1.
    """
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != hidden_size or not rows.is_floating_point():
        raise CheckpointError(
            f"mask tokens of shape {tuple(rows.shape)} and type {rows.dtype}: the language model takes floats of "
            f"shape (rows, {hidden_size}). The mask encoder belongs to another base; export again"
        )
    if not bool(torch.isfinite(rows).all()):
        raise CheckpointError(
            "mask tokens hold NaN or infinity: the mask encoder's weights are damaged or training diverged; export an "
            "earlier checkpoint"
        )
