"""Log probabilities from vLLM's own model of each of some checkpoints, in a process of its own: one image, one prompt.

python vllm_logprobs.py IMAGE PROMPT FOLDER...    writes FOLDER.json: {"ids": [S], "logprobs": [S - 1][vocabulary]}
"""

import json
import os
import sys

from PIL import Image

# Without these vLLM compiles its sampler even where it runs eagerly, and starts two more processes for each engine.
os.environ.update(TORCHDYNAMO_DISABLE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")

from ureca.torchvision_ops import declare_missing_operators

declare_missing_operators()


def main(image: str, prompt: str, *folders: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

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
        assert llm.llm_engine.model_config.architectures == ["InternVLChatModel"]
        request = {"prompt": prompt, "multi_modal_data": {"image": Image.open(image)}}
        [answer] = llm.generate([request], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1))
        rows = [[row[token].logprob for token in range(len(row))] for row in answer.prompt_logprobs[1:]]
        with open(f"{folder}.json", "w") as file:
            json.dump({"ids": answer.prompt_token_ids, "logprobs": rows}, file)
        del llm
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main(*sys.argv[1:])
