"""DeepSpeed: its configuration, and the learning rate.

Gradients. The loss of a step is the sum over its caption tokens (in stage 3 its pairs) divided by their number, over
all workers and passes. DeepSpeed averages gradients over workers (and would divide each pass's loss by the number of
passes); `loss_for_backward` undoes that, so the step's gradient is the gradient of the step's loss however the step
was cut up. With a mean of means a worker with few tokens would count as much as one with many.
"""

import math
from typing import Any

from torch import Tensor

from ureca.errors import UrecaError
from ureca.training.config import OptimizerConfig, WorkersConfig

BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced at once. DeepSpeed allocates the whole bucket, two of them on GPUs, however few weights
train: at its own 500 million that is 2 GB of a GPU's memory in bfloat16 where LoRA has 0.6 GB of gradients."""


class TrainingError(UrecaError):
    """Training can't go on: the loss or the gradient is no longer a number, or a disk is full."""


def deepspeed_config(optimizer: OptimizerConfig, workers: WorkersConfig) -> dict[str, Any]:
    """DeepSpeed's JSON for a plan."""
    # A CPU has no streams to overlap communication with.
    sharing: dict[str, Any] = {
        "stage": workers.zero_stage,
        "overlap_comm": workers.use_gpu,
        "reduce_bucket_size": BUCKET_ELEMENTS,
    }
    if workers.offload_optimizer:
        sharing["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if workers.offload_weights:
        sharing["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        # Steps have as many passes as their tokens need: the loop says which is the last, and counts for itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "optimizer": {
            "type": "AdamW",
            # torch_adam: DeepSpeed's own would be compiled at run time. torch's fused form comes compiled, for GPUs and
            # for the CPUs that an offloaded optimizer steps on.
            "params": {
                "torch_adam": True,
                "fused": workers.use_gpu,
                "lr": optimizer.learning_rate,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": optimizer.weight_decay,
            },
        },
        "gradient_clipping": optimizer.clip_norm,
        # On a CPU the loop computes under torch's autocast: DeepSpeed's way would put the weights that train into
        # bfloat16 too, and reduce gradients in it.
        "bf16": {"enabled": workers.bf16 and workers.use_gpu},
        "zero_optimization": sharing,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }


def loss_for_backward(share: Tensor, num_workers: int) -> Tensor:
    """A pass's share of the step's loss, scaled so that DeepSpeed's average over workers is the sum of all shares.

    For `engine.backward(..., scale_wrt_gas=False)`, which leaves out the division by the number of passes.
    """
    return share * num_workers


def learning_rate(step: int, num_steps: int, optimizer: OptimizerConfig) -> float:
    """Linear warm-up to the peak, then a cosine to zero. A function of the step: nothing to restore."""
    warmup = max(1, round(num_steps * optimizer.warmup_share))
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    progress = (step - warmup + 1) / max(1, num_steps - warmup + 1)
    return optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def refuse_non_finite(step: int, *, loss: float, grad_norm: float) -> None:
    """Raise TrainingError, naming the step (counted from 1), if either figure is infinite or no number."""
    for name, value in (("loss", loss), ("gradient's norm", grad_norm)):
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: the {name} is {value}; nothing after the latest checkpoint was kept. "
                "Start again with a lower --optimizer.learning_rate and another --run_directory."
            )
