"""Processor: images, regions and queries to model inputs; the only module that knows the sequence.

    <|im_start|>user\\n<img>IMG_CONTEXT x 256 T</img>\\n   prefix: one per image
    [start, N x T' mask tokens, end]                       mask: one per region
    \\nQUERY<|im_end|>\\n<|im_start|>assistant\\n            branch: after the mask
    CAPTION<|im_end|>                                      target

Source: order image, mask, query: URECA (arXiv 2504.05305) figure 3. Tiles and image tokens are those of transformers'
InternVL processor; the mask is cut on the same grid. Image first lets all regions of an image share its prefix.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, InternVLConfig, PreTrainedTokenizerBase, ProcessorMixin

from ureca.errors import CheckpointError, ConfigError
from ureca.model.mask_encoder import MaskTiles
from ureca.regions.rle import Rle
from ureca.regions.tiles import mask_tiles, tile_grid

Style = Literal["brief", "detailed", "unique"]
Cue = Literal["mask", "none", "box", "box_question", "image"]

STYLE_QUERIES: dict[str, str] = {
    "brief": "name this region briefly.",
    "detailed": "describe this region in detail.",
    "unique": "describe this region so that no other fits.",
}
IMAGE_QUERY = "what is in the picture?"
BOX_QUERY = "what fills {box}?"
GRID = 32
"""Cells per side of the location token grid (nano's vocabulary: <p0000> .. <p1023>, row by row)."""


def location_token(x: float, y: float) -> str:
    """Return the location token of the point (x, y), both in 0..1 of the image."""
    column = min(int(x * GRID), GRID - 1)
    row = min(int(y * GRID), GRID - 1)
    return f"<p{row * GRID + column:04d}>"


def _load(path: str) -> ProcessorMixin:
    try:
        return AutoProcessor.from_pretrained(path)
    except Exception as error:  # many types for missing or damaged files
        raise CheckpointError(
            f"{path}: no InternVL processor could be loaded ({str(error).splitlines()[0]}); use a folder with "
            "processor_config.json and tokenizer.json, or a hub name this machine can reach"
        ) from error


class CaptionerProcessor:
    """Turns images, masks and queries into model inputs. Thread-safe and stateless per request."""

    def __init__(self, hf: ProcessorMixin, *, tile_limit: int) -> None:
        """Wrap transformers' InternVLProcessor; `tile_limit` is the maximum number of tiles, thumbnail not counted."""
        self.hf = hf
        self.tile_limit = tile_limit
        self.tokenizer: PreTrainedTokenizerBase = hf.tokenizer  # type: ignore[attr-defined]
        self.image_processor: Any = hf.image_processor  # type: ignore[attr-defined]
        # The hub's `-hf` repositories say False: their image processor alone would return one tile for every image.
        self.image_processor.crop_to_patches = True
        self.image_processor.max_patches = tile_limit
        self.image_processor.min_patches = 1
        self.tile_px: int = self.image_processor.size["height"]
        self._prefixes: dict[int, tuple[int, ...]] = {}

    @classmethod
    def from_pretrained(cls, path: str, *, tile_limit: int) -> CaptionerProcessor:
        """Load the InternVL processor of a base and set its tile limit. Raises CheckpointError if there is none."""
        return cls(_load(path), tile_limit=tile_limit)

    @classmethod
    def from_captioner(cls, path: str, *, tile_limit: int) -> CaptionerProcessor:
        """Load the processor of a model directory or export that was trained with `tile_limit`.

        Raises:
            CheckpointError: there is none, or its number of tiles differs: transformers and vLLM would then tile images
                differently than in training.
        """
        hf: Any = _load(path)
        least, most = hf.image_processor.min_patches, hf.image_processor.max_patches
        if (least, most) != (1, tile_limit):
            raise CheckpointError(
                f"{path}: processor_config.json cuts an image into {least} to {most} tiles (min_patches, "
                f"max_patches), but captioner_config.json was trained with 1 to {tile_limit}; undo the change, or "
                "export again"
            )
        if not hf.image_processor.crop_to_patches:
            raise CheckpointError(
                f"{path}: processor_config.json has crop_to_patches=false, so every image would be one tile, "
                f"but the captioner was trained with up to {tile_limit}; set it to true, or export again"
            )
        return cls(hf, tile_limit=tile_limit)

    def check_against(self, config: InternVLConfig, base: str) -> None:
        """Compare the processor with the configuration of its base; surplus rows of the vocabulary are allowed.

        Raises:
            CheckpointError: tile size, tokens per tile, image token or vocabulary differ; names both values.
        """
        vision: Any = config.vision_config
        text: Any = config.text_config
        numbers = {
            "tile size in pixels": (self.tile_px, vision.image_size[0]),
            "image tokens per tile": (self.hf.image_seq_length, config.image_seq_length),  # type: ignore[attr-defined]
            "id of <IMG_CONTEXT>": (self.image_token_id, config.image_token_id),
        }
        for what, (here, there) in numbers.items():
            if here != there:
                raise CheckpointError(
                    f"{base}: {what} is {here} in its processor and tokenizer, but {there} in config.json; the files "
                    "are from two checkpoints, download it again"
                )
        if len(self.tokenizer) > text.vocab_size:
            raise CheckpointError(
                f"{base}: its tokenizer has {len(self.tokenizer)} tokens, but config.json has {text.vocab_size} rows "
                "of embeddings; the files are from two checkpoints, download it again"
            )

    def image_inputs(self, image: np.ndarray | Image.Image) -> Tensor:
        """Convert an image `(H, W, 3)` uint8 RGB to pixel values `(T, 3, tile, tile)` float32, thumbnail last."""
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        values = self.image_processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        return values.reshape(-1, *values.shape[-3:])

    def prefix_ids(self, num_tiles: int) -> list[int]:
        """Return the token ids before a region's mask tokens, image placeholders included."""
        if num_tiles not in self._prefixes:  # cached: it takes milliseconds, and every image needs it
            image = f"<img>{'<IMG_CONTEXT>' * self.hf.image_seq_length * num_tiles}</img>"  # type: ignore[attr-defined]
            text = f"<|im_start|>user\n{image}\n"
            # with the vocabulary's first token, if it has one (InternLM2)
            self._prefixes[num_tiles] = tuple(self.tokenizer(text)["input_ids"])
        return list(self._prefixes[num_tiles])

    def branch_ids(self, query: str) -> list[int]:
        """Return the token ids between the mask tokens and the caption."""
        text = f"\n{query}<|im_end|>\n<|im_start|>assistant\n"
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def caption_ids(self, caption: str) -> list[int]:
        """Return the token ids of a caption, end token included: exactly the positions of the loss."""
        return self.tokenizer(f"{caption}<|im_end|>", add_special_tokens=False)["input_ids"]

    def caption_lengths(self, captions: list[str]) -> list[int]:
        """Return the number of `caption_ids` of each caption."""
        if not captions:
            return []
        ids = self.tokenizer([f"{caption}<|im_end|>" for caption in captions], add_special_tokens=False)["input_ids"]
        return [len(of_caption) for of_caption in ids]

    @cached_property
    def image_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))  # type: ignore[arg-type]

    @cached_property
    def end_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))  # type: ignore[arg-type]

    @cached_property
    def location_ids(self) -> list[int] | None:
        """Ids of the location tokens, row by row; None if the vocabulary has none."""
        vocabulary = self.tokenizer.get_vocab()
        ids = [
            vocabulary.get(location_token((cell % GRID + 0.5) / GRID, (cell // GRID + 0.5) / GRID))
            for cell in range(GRID**2)
        ]
        return None if None in ids else ids  # type: ignore[return-value]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (columns, rows) of tiles for an image of `size` (height, width)."""
        return tile_grid(size, self.tile_px, self.tile_limit)

    def mask_tiles(self, segmentation: Rle) -> MaskTiles:
        """Cut a COCO RLE into mask tiles on the image's own grid, thumbnail last."""
        height, width = segmentation["size"]
        values, places = mask_tiles(segmentation, tile_px=self.tile_px, max_tiles=self.tile_limit)
        return MaskTiles(torch.from_numpy(values), torch.from_numpy(places), self.grid((height, width)))

    def query(
        self,
        style: str,
        *,
        cue: Cue = "mask",
        box: tuple[float, float, float, float] | None = None,
        size: tuple[int, int] | None = None,
    ) -> str:
        """Return the query text for a style and cue.

        `mask`, `none` and `box` use the style's words: with mask tokens before them, without any region cue, or with
        the box (x, y, w, h) in an image of `size` (h, w) as text. `box_question` and `image` are an untuned base's own
        questions about the box or the entire image. Raises ConfigError for an unknown style.
        """
        if style not in STYLE_QUERIES:
            raise ConfigError(f"unknown style {style!r}; known: {', '.join(STYLE_QUERIES)}")
        if cue == "image":
            return IMAGE_QUERY
        if cue not in ("box", "box_question"):
            return STYLE_QUERIES[style]
        assert box is not None
        assert size is not None
        question = BOX_QUERY.format(box=self.box_text(box, size))
        return question if cue == "box_question" else f"{question} {STYLE_QUERIES[style]}"

    def box_text(self, box: tuple[float, float, float, float], size: tuple[int, int]) -> str:
        """Write a box (x, y, w, h) of an image of `size` (h, w) as text that the base understands.

        Location tokens if the vocabulary has them (nano), else InternVL's form `<box>[[x0, y0, x1, y1]]</box>` in
        thousandths.
        """
        x, y, w, h = box
        height, width = size
        x0, y0, x1, y1 = x / width, y / height, (x + w) / width, (y + h) / height
        if self.location_ids is not None:
            return f"{location_token(x0, y0)} {location_token(max(x1 - 1e-6, 0), max(y1 - 1e-6, 0))}"
        corners = ", ".join(str(round(v * 1000)) for v in (x0, y0, x1, y1))
        return f"<box>[[{corners}]]</box>"

    def save_pretrained(self, directory: str) -> None:
        self.hf.save_pretrained(directory)
