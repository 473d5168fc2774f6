"""Log probabilities from vLLM's own model of a checkpoint, in a process of its own: one engine, one image, one prompt.

python vllm_logprobs.py FOLDER IMAGE PROMPT OUTPUT    writes {"ids": [S], "logprobs": [S - 1][vocabulary]} as JSON
"""

import json
import sys

from PIL import Image

from ureca.torchvision_ops import declare_missing_operators

declare_missing_operators()


def main(folder: str, image: str, prompt: str, output: str) -> None:
    from vllm import LLM, SamplingParams

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
    with open(output, "w") as file:
        json.dump({"ids": answer.prompt_token_ids, "logprobs": rows}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
