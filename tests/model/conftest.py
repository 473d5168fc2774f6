"""A tiny captioner with random weights: nano's classes at width 64, float64, up to six tiles of 256 px."""

import pytest
import torch

from ureca.model import Captioner
from ureca.model.captioner import CaptionerConfig, weights_hash
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig
from ureca.model.nano import nano_config, nano_processor, nano_tokenizer, new_nano, save_nano
from ureca.model.processor import CaptionerProcessor

WORDS = ["a red round part at the left of the picture.", "describe this region so that no other fits."]


def tiny_captioner(*, kind: str = "tokens", tile_limit: int = 6, dtype: torch.dtype = torch.float64) -> Captioner:
    tokenizer = nano_tokenizer(WORDS * 50, num_words=344)
    config = nano_config(tokenizer, width=64, layers=2, vision_width=64, vision_layers=1)
    base = new_nano(config, seed=0).to(dtype).eval()
    mask = MaskEncoderConfig(kind=kind, tokens_per_tile=4, tile_px=256, hidden_size=64, embedding_norm=0.1)
    torch.manual_seed(0)
    encoder = MaskEncoder(mask).to(dtype)
    settings = CaptionerConfig(base="tiny", base_hash=weights_hash(base), tile_limit=tile_limit, mask=mask)
    processor = CaptionerProcessor(nano_processor(tokenizer, tile_limit=tile_limit), tile_limit=tile_limit)
    return Captioner(base, encoder, settings, processor).eval()


@pytest.fixture(scope="session")
def tiny_captioner_f64() -> Captioner:
    return tiny_captioner()


@pytest.fixture(scope="session")
def tiny_base_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny HF-native InternVL on disk, to be named as a base."""
    directory = tmp_path_factory.mktemp("tiny_base")
    tokenizer = nano_tokenizer(WORDS * 50, num_words=344)
    config = nano_config(tokenizer, width=64, layers=2, vision_width=64, vision_layers=1)
    save_nano(new_nano(config, seed=0), nano_processor(tokenizer), directory)
    return str(directory)
