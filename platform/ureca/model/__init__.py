"""The captioner: an unmodified HF-native InternVL and a mask encoder next to it.

    image  ──> vision tower, projector ──> image tokens ┐
    masks  ──> mask encoder ───────────> mask tokens    ├─> language model ──> caption
    query  ──> tokenizer ──────────────> query tokens   ┘

Nothing here imports ray, vllm or deepspeed.
"""

from ureca.torchvision_ops import declare_missing_operators

declare_missing_operators()  # before the first import of transformers' image processors

from transformers.utils.logging import disable_progress_bar  # noqa: E402

disable_progress_bar()  # its bar for every model load would bury a job's own progress line
