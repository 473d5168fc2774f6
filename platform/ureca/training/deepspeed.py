"""DeepSpeed configuration, loss scaling and learning-rate schedule.

The loss of a step is the sum over its caption tokens (in stage 3: pairs) divided by their number, over all workers and
microbatches. DeepSpeed averages gradients over workers and would divide each microbatch's loss by the number of
microbatches. `loss_for_backward` undoes both, so the gradient is that of the step's loss for every split. A mean of
means would weigh a worker with few tokens like one with many.
"""

import math
from typing import Any

from torch import Tensor, nn

from ureca.errors import UrecaError
from ureca.training.config import OptimizerConfig, WorkersConfig

_NO_DECAY = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Patterns of names without weight decay."""

BUCKET_ELEMENTS = 50_000_000
"""Gradient elements per reduction. DeepSpeed allocates the full bucket (two on GPUs) even when few weights train: its
default of 500 million costs 2 GB of GPU memory in bfloat16, where LoRA has 0.6 GB of gradients."""


class TrainingError(UrecaError):
    """Training can't continue: loss or gradient became non-finite, or a disk is full."""


def deepspeed_config(optimizer: OptimizerConfig, workers: WorkersConfig) -> dict[str, Any]:
    """Return the DeepSpeed configuration."""
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
    bf16 = workers.bf16 and workers.use_gpu
    # A step adds up the gradients of many passes, which bfloat16 rounds away.
    precision = {"data_types": {"grad_accum_dtype": "fp32"}} if bf16 else {}
    return {
        **precision,
        # The number of microbatches varies by step: the worker counts them and marks the last one.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "optimizer": {
            "type": "AdamW",
            # torch_adam: DeepSpeed's own Adam is compiled at run time. torch's fused Adam ships compiled, for GPUs and
            # for the CPUs that run an offloaded optimizer.
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
        # On CPUs the worker uses torch autocast: DeepSpeed's bf16 mode would also keep trained weights in bfloat16 and
        # reduce gradients in it.
        "bf16": {"enabled": bf16},
        "zero_optimization": sharing,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }


def parameter_groups(module: nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the trained parameters in optimizer groups: biases and norms have no weight decay.

    Source: transformers' `Trainer.get_decay_parameter_names`, which the paper's training uses.
    """
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = set(get_parameter_names(module, [nn.LayerNorm], _NO_DECAY))
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": optimizer.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def loss_for_backward(share: Tensor, num_workers: int) -> Tensor:
    """Scale a microbatch's loss share so that DeepSpeed's average over workers equals the sum of all shares.

    For `engine.backward(..., scale_wrt_gas=False)`, which skips the division by the number of microbatches.
    """
    return share * num_workers


def learning_rate(step: int, num_steps: int, optimizer: OptimizerConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay to zero.

    A function of the step only, so there is no state to restore.
    """
    warmup = max(1, round(num_steps * optimizer.warmup_share))
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    progress = (step - warmup + 1) / max(1, num_steps - warmup + 1)
    return optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def refuse_non_finite(step: int, *, loss: float, grad_norm: float) -> None:
    """Raise TrainingError, naming the step (counted from 1), if loss or gradient norm is not finite."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: the {name} is {value}; the run keeps its latest checkpoint. "
                "Restart with a lower --optimizer.learning_rate and another --run_directory."
            )
