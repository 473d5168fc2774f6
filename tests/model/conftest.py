"""A tiny captioner with random weights: nano's classes at width 64, float64, up to six tiles of 256 px."""

import pytest
from support.captioners import WORDS, tiny_captioner

from ureca.model.captioner import Captioner
from ureca.nano.architecture import nano_config, nano_processor, nano_tokenizer, new_nano, save_nano


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
