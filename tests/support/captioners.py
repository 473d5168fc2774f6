"""Shared by tests of the model: a tiny captioner, drawn examples, and a reference loss."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ureca.model.captioner import Captioner, CaptionerConfig, weights_hash
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig
from ureca.model.packing import IGNORED, Example, PackedBatch, RegionExample
from ureca.model.processor import CaptionerProcessor
from ureca.nano.architecture import nano_config, nano_processor, nano_tokenizer, new_nano
from ureca.regions.rle import encode_mask

WORDS = ["a red round part at the left of the picture.", "describe this region so that no other fits."]


def tiny_captioner(*, kind: str = "tokens", tile_limit: int = 6, dtype: torch.dtype = torch.float64) -> Captioner:
    """Random weights: nano's classes at width 64, tiles of 256 px."""
    tokenizer = nano_tokenizer(WORDS * 50, num_words=344)
    config = nano_config(tokenizer, width=64, layers=2, vision_width=64, vision_layers=1)
    base = new_nano(config, seed=0).to(dtype).eval()
    mask = MaskEncoderConfig(kind=kind, tokens_per_tile=4, tile_px=256, hidden_size=64, embedding_norm=0.1)
    torch.manual_seed(0)
    encoder = MaskEncoder(mask).to(dtype)
    settings = CaptionerConfig(base="tiny", base_hash=weights_hash(base), tile_limit=tile_limit, mask=mask)
    processor = CaptionerProcessor(nano_processor(tokenizer, tile_limit=tile_limit), tile_limit=tile_limit)
    return Captioner(base, encoder, settings, processor).eval()


def drawn_example(num_regions: int, *, seed: int, size: tuple[int, int] = (300, 500), cue: bool = True) -> Example:
    """Noise with boxes of 4 to 80 px as regions, captions of unlike lengths."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    regions = []
    for number in range(num_regions):
        y, x = rng.integers(0, size[0] - 60), rng.integers(0, size[1] - 80)
        mask = np.zeros(size, dtype=bool)
        mask[y : y + rng.integers(4, 60), x : x + rng.integers(4, 80)] = True
        caption = " ".join(rng.choice(["a", "red", "round", "part", "left", "picture"], size=3 + number % 5))
        regions.append(RegionExample(encode_mask(mask) if cue else None, "describe this region.", caption))
    return Example(image, tuple(regions))


def plain_loss(captioner: Captioner, batches: Sequence[PackedBatch]) -> Tensor:
    """Summed loss of one-region batches as sequences of one padded batch, by transformers' own forward pass."""
    base, embed = captioner.base, captioner.base.get_input_embeddings()
    rows, labels = [], []
    for batch in batches:
        prefix, branch = embed(batch.prefix_ids), embed(batch.input_ids)
        features = captioner.image_features(batch.pixel_values).flatten(0, 1).to(prefix.dtype)
        prefix = prefix.masked_scatter((batch.prefix_ids == captioner.processor.image_token_id)[:, None], features)
        tokens = captioner.mask_encoder(batch.mask_tiles)
        branch = branch.masked_scatter(batch.is_mask[:, None], torch.cat(tokens).to(branch.dtype))
        rows.append(torch.cat([prefix, branch]))
        labels.append(torch.cat([torch.full_like(batch.prefix_ids, IGNORED), batch.labels]))
    # Padding on the right: causal attention keeps it from being seen.
    embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    targets = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    hidden = base.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    kept = targets != IGNORED
    return nn.functional.cross_entropy(base.lm_head(hidden[kept]), targets[kept], reduction="sum")
