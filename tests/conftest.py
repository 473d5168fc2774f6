"""What every test runs under: the environment, set before anything imports Ray, vLLM or transformers."""

import os

os.environ.pop("RAY_ADDRESS", None)  # it would win over every address that a test gives
os.environ.update(
    {
        # Set on purpose: Ray's default writes a token into the home folder. Here Ray listens on loopback only.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DS_ACCELERATOR": "cpu",
    }
)
