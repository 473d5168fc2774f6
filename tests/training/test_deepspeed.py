import math

import pytest
import torch
from support.captioners import tiny_captioner
from transformers import Trainer

from ureca.training.config import OptimizerConfig, WorkersConfig
from ureca.training.deepspeed import (
    BUCKET_ELEMENTS,
    TrainingError,
    deepspeed_config,
    learning_rate,
    loss_for_backward,
    parameter_groups,
    refuse_non_finite,
)

# Tokens of each pass of each worker: unequal on purpose, else any normalization would do.
TOKENS = [[5, 1], [17, 40]]


def reduced_gradient(scaled: bool) -> torch.Tensor:
    """The gradient as DeepSpeed makes it from each pass's loss: summed over passes, averaged over workers."""
    torch.manual_seed(0)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    inputs = [[torch.randn(count, 3, dtype=torch.float64) for count in microbatches] for microbatches in TOKENS]
    total = sum(map(sum, TOKENS))
    workers = []
    for microbatches in inputs:
        weight.grad = None
        for tokens in microbatches:
            losses = (tokens @ weight).square()
            if scaled:
                loss_for_backward(losses.sum() / total, len(TOKENS)).backward()
            else:
                (losses.mean() / len(microbatches)).backward()
        assert weight.grad is not None
        workers.append(weight.grad.clone())
    return torch.stack(workers).mean(dim=0)


def whole_gradient() -> torch.Tensor:
    torch.manual_seed(0)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    inputs = torch.cat(
        [torch.randn(count, 3, dtype=torch.float64) for microbatches in TOKENS for count in microbatches]
    )
    (inputs @ weight).square().mean().backward()
    assert weight.grad is not None
    return weight.grad


def test_gradient_does_not_depend_on_how_the_step_is_cut_up() -> None:
    torch.testing.assert_close(reduced_gradient(scaled=True), whole_gradient(), rtol=1e-12, atol=0)


def test_a_mean_of_means_is_noticed() -> None:
    with pytest.raises(AssertionError):
        torch.testing.assert_close(reduced_gradient(scaled=False), whole_gradient(), rtol=1e-2, atol=0)


def test_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    optimizer = OptimizerConfig(learning_rate=2e-4, warmup_share=0.03)
    rates = [learning_rate(step, 1000, optimizer) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-4 / 30)
    assert rates[29] == max(rates) == pytest.approx(2e-4)
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[30 + 485] == pytest.approx(1e-4, rel=0.01)
    assert 0 < rates[-1] < 1e-8
    assert all(math.isfinite(learning_rate(step, 1, optimizer)) for step in range(1))


def test_no_compiled_operator_and_no_streams_on_cpus() -> None:
    config = deepspeed_config(OptimizerConfig(learning_rate=1e-3), WorkersConfig(zero_stage=2))
    assert config["optimizer"]["params"]["torch_adam"] is True
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": BUCKET_ELEMENTS}
    assert config["gradient_clipping"] == 1.0
    # Not what accumulates: the loop marks each step's last pass, and no loss is divided by their number.
    assert config["gradient_accumulation_steps"] == 1


def test_what_is_offloaded_lies_in_the_machine_s_memory() -> None:
    workers = WorkersConfig(use_gpu=True, bf16=True, zero_stage=3, offload_optimizer=True, offload_weights=True)
    config = deepspeed_config(OptimizerConfig(learning_rate=1e-3), workers)
    sharing = config["zero_optimization"]
    assert sharing["offload_optimizer"]["device"] == sharing["offload_param"]["device"] == "cpu"
    assert config["bf16"] == {"enabled": True}
    assert config["optimizer"]["params"]["torch_adam"] is True  # no operator is compiled at run time


def test_a_loss_that_is_no_number_stops_training_and_names_the_step() -> None:
    refuse_non_finite(7, loss=3.0, grad_norm=0.0)
    with pytest.raises(TrainingError, match=r"7:.*--optimizer\.learning_rate"):
        refuse_non_finite(7, loss=math.nan, grad_norm=1.0)
    with pytest.raises(TrainingError, match="gradient norm"):
        refuse_non_finite(8, loss=3.0, grad_norm=math.inf)


@pytest.mark.parametrize("stage", [1, 2])
def test_parameter_groups_decay_what_transformers_trainer_decays(stage):
    captioner = tiny_captioner()
    if stage == 2:
        captioner.add_lora(rank=2, dropout=0.0)
    captioner.trainable(stage, tune_mask_encoder=True)
    groups = parameter_groups(captioner, OptimizerConfig(learning_rate=1e-3, weight_decay=0.01))
    decayed = set(Trainer.get_decay_parameter_names(None, captioner))
    trained = {name: parameter for name, parameter in captioner.named_parameters() if parameter.requires_grad}
    expected = {
        0.01: {id(parameter) for name, parameter in trained.items() if name in decayed},
        0.0: {id(parameter) for name, parameter in trained.items() if name not in decayed},
    }
    assert {group["weight_decay"]: {id(p) for p in group["params"]} for group in groups} == expected
    assert all(expected.values()), "the mask encoder has weights, norms and biases"


def test_gradients_of_many_passes_add_up_in_float32_with_bf16_on_gpus():
    config = deepspeed_config(OptimizerConfig(learning_rate=1e-3), WorkersConfig(use_gpu=True, bf16=True))
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in deepspeed_config(OptimizerConfig(learning_rate=1e-3), WorkersConfig())
