"""vLLM's own `InternVLChatModel` on the official checkpoint says what transformers says on the converted one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.families import TILE_PX
from support.official import write_official
from support.paths import SUPPORT
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, InternVLForConditionalGeneration

from ureca.model.internvl.convert import convert_base

pytestmark = pytest.mark.slow

SCRIPT = SUPPORT / "vllm_logprobs.py"
QUESTION = "describe this region."
FAMILIES = ("qwen2", "qwen3", "llama")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles as they are, and a thumbnail."""
    path = tmp_path_factory.mktemp("image") / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (TILE_PX, 2 * TILE_PX, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def of_vllm(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of each family's official checkpoint, with vLLM's result."""
    folder = tmp_path_factory.mktemp("official")
    checkpoints = {family: write_official(folder / family, family) for family in FAMILIES}
    prompt = f"<|im_start|>user\n<image>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    command = [sys.executable, str(SCRIPT), str(image), prompt, *map(str, checkpoints.values())]
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return checkpoints


def inputs_of(folder: Path, image: Path) -> BatchFeature:
    content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": QUESTION}]
    return AutoProcessor.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def logprobs(model: InternVLForConditionalGeneration, ids: Tensor, pixels: Tensor) -> Tensor:
    """`(S - 1, vocabulary)`: what is expected after each token of a prompt but the last."""
    with torch.no_grad():
        return model(input_ids=ids[None], pixel_values=pixels).logits[0, :-1].log_softmax(dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_after_conversion_are_vllm_s_of_the_official_checkpoint(
    family: str, image: Path, of_vllm: dict[str, Path], tmp_path: Path
) -> None:
    answer = load_file(of_vllm[family].with_name(f"{family}.safetensors"))
    native = convert_base(of_vllm[family], tmp_path / "native")
    inputs = inputs_of(native, image)
    assert inputs["input_ids"][0].tolist() == answer["ids"].tolist()
    # Two tiles as they are, and a thumbnail whose two resamplings differ by a level of 255 here and there.
    a_level = 1 / 255 / 0.224
    torch.testing.assert_close(inputs["pixel_values"], answer["pixels"], rtol=0, atol=1.01 * a_level)

    model = InternVLForConditionalGeneration.from_pretrained(native)
    found = logprobs(model, answer["ids"], answer["pixels"])
    # Of log-probabilities whose standard deviation is 1; 2e-5 (Qwen2) and 1.3e-5 (InternLM2) were found.
    torch.testing.assert_close(found, answer["logprobs"], rtol=0, atol=1e-4)

    attention = model.model.language_model.layers[0].self_attn
    with torch.no_grad():  # what a wrong order of heads would look like
        attention.q_proj.weight.copy_(attention.q_proj.weight.roll(32, dims=0))
    assert (logprobs(model, answer["ids"], answer["pixels"]) - answer["logprobs"]).abs().max() > 1
