"""Log-probabilities from vLLM's own model of each of some checkpoints, in a separate process: one image, one prompt.

python vllm_logprobs.py IMAGE PROMPT FOLDER...

writes for each FOLDER.safetensors: `ids` (S,) of the prompt, `logprobs` (S - 1, vocabulary) of what follows each but
the last, and `pixels` (tiles, 3, height, width), the image as the model was shown it.
"""

import os
import sys

import torch
from PIL import Image
from safetensors.torch import save_file

# Without these vLLM compiles its sampler even where it runs eagerly, and starts two more processes for each engine.
os.environ.update(TORCHDYNAMO_DISABLE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")

from ureca.torchvision_ops import declare_missing_operators

declare_missing_operators()


def main(image: str, prompt: str, *folders: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.transformers_utils.processors.internvl import InternVLImageProcessor

    for folder in folders:
        llm = LLM(
            folder,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=1,
            max_num_batched_tokens=1024,
            enforce_eager=True,
            trust_remote_code=True,
            max_logprobs=-1,
            enable_prefix_caching=False,
            limit_mm_per_prompt={"image": 1, "video": 0},
            skip_mm_profiling=True,
        )
        config = llm.llm_engine.model_config.hf_config
        assert config.architectures == ["InternVLChatModel"]
        request = {"prompt": prompt, "multi_modal_data": {"image": Image.open(image)}}
        [answer] = llm.generate([request], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1))
        settings = ("min_dynamic_patch", "max_dynamic_patch", "dynamic_image_size", "use_thumbnail")
        processor = InternVLImageProcessor(
            image_size=config.vision_config.image_size, **{name: getattr(config, name) for name in settings}
        )
        found = {
            "ids": torch.tensor(answer.prompt_token_ids),
            "logprobs": torch.tensor([[row[t].logprob for t in range(len(row))] for row in answer.prompt_logprobs[1:]]),
            "pixels": processor([Image.open(image)])["pixel_values_flat"],
        }
        save_file(found, f"{folder}.safetensors")
        del llm
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main(*sys.argv[1:])
