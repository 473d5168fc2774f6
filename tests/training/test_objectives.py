"""Stage 3's loss against a plain restatement of DPO, on log-probabilities of transformers' own forward pass."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ureca.model.captioner import Captioner
from ureca.model.packing import Example, PackedBatch, RegionExample, pack
from ureca.model.reference import as_reference, keep_reference
from ureca.regions.rle import encode_mask
from ureca.training.config import PreferenceConfig
from ureca.training.objectives import CaptionLoss, PreferenceLoss, preference_losses

WORDS = ["a", "red", "green", "box", "number", "from", "the", "left", "long"]


def drawn_example(seed: int, pairs_of_region: list[int]) -> Example:
    """Regions with their own caption and that many others, of unlike lengths."""
    draw = np.random.default_rng(seed)
    branches: list[RegionExample] = []
    pairs = []
    for count in pairs_of_region:
        mask = np.zeros((64, 96), dtype=bool)
        y, x = draw.integers(0, 40), draw.integers(0, 60)
        mask[y : y + 20, x : x + 30] = True
        captions = [" ".join(draw.choice(WORDS, size=draw.integers(2, 9))) for _ in range(1 + count)]
        pairs += [(len(branches), len(branches) + 1 + number) for number in range(count)]
        branches += [RegionExample(encode_mask(mask), "describe this region.", caption) for caption in captions]
    return Example(draw.integers(0, 256, (64, 96, 3), dtype=np.uint8), tuple(branches), tuple(pairs))


EXAMPLES = [drawn_example(0, [2, 1, 3]), drawn_example(1, [1]), drawn_example(2, [2, 2])]


class Engine:
    """Runs a captioner as DeepSpeed's engine does."""

    def __init__(self, captioner: Captioner) -> None:
        self.module = captioner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def tuned(base: Path, dtype: torch.dtype = torch.float64) -> Captioner:
    """A captioner with an adapter that is not zero, as stage 2 leaves it, ready for stage 3."""
    captioner = Captioner.from_base(str(base), tile_limit=1, tokens_per_tile=4, seed=1, dtype=dtype)
    captioner.add_lora(rank=4, dropout=0.05)
    shift(captioner, ".lora_B", seed=3)
    captioner.trainable(3, tune_mask_encoder=True)
    keep_reference(captioner)
    return captioner


@torch.no_grad()
def shift(captioner: Captioner, part: str, *, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in captioner.named_parameters():
        if part in name and ".reference." not in name and not name.startswith("reference"):
            parameter += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=draw)


@pytest.fixture(scope="module")
def moved(tiny_base: Path) -> Captioner:
    """Adapter and mask encoder have learned since the reference was kept."""
    captioner = tuned(tiny_base)
    shift(captioner, ".lora_", seed=4)
    shift(captioner, "mask_encoder.", seed=5)
    return captioner


def packed(captioner: Captioner, examples: list[Example]) -> PackedBatch:
    return pack(examples, captioner.processor, **captioner.pack_options())


def whole_step(objective: CaptionLoss, batches: list[PackedBatch]) -> dict[str, float]:
    counts = [objective.counts(batch) for batch in batches]
    return {name: sum(each[name] for each in counts) for name in counts[0]}


def step(captioner: Captioner, objective: PreferenceLoss, microbatches: list[list[Example]]) -> dict[str, Any]:
    """Loss, further metrics and gradients of a step cut into passes."""
    batches = [packed(captioner, examples) for examples in microbatches]
    counts = whole_step(objective, batches)
    captioner.zero_grad()
    total = dict.fromkeys(("loss", "preference_loss", "margin", "preference_accuracy", "ranking_accuracy"), 0.0)
    for batch in batches:
        loss, figures = objective.loss(Engine(captioner), batch, counts)
        loss.backward()
        for name in total:
            total[name] += float(loss.detach() if name == "loss" else figures[name])
    return {**total, **gradients(captioner)}


def gradients(captioner: Captioner) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in captioner.named_parameters() if p.grad is not None}


@contextmanager
def attention_of_transformers(captioner: Captioner) -> Iterator[None]:
    language_model = captioner.base.model.language_model
    ours = language_model.config._attn_implementation
    language_model.set_attn_implementation("sdpa")
    yield
    language_model.set_attn_implementation(ours)


def log_probability(captioner: Captioner, image: Any, region: RegionExample) -> tuple[torch.Tensor, int]:
    """Loss of a caption, by the base's forward pass over the whole sequence."""
    processor = captioner.processor
    caption = torch.tensor(processor.caption_ids(region.caption))
    prompt, _ = Captioner.prompt_embeddings.__wrapped__(captioner, image, [region.segmentation], [region.query])  # type: ignore[attr-defined]
    embedded = torch.cat([prompt, captioner.base.get_input_embeddings()(caption)[None]], dim=1)
    logits = captioner.base(inputs_embeds=embedded).logits[0, -len(caption) - 1 : -1]
    return logits.log_softmax(-1).gather(1, caption[:, None]).sum(), len(caption)


def plain_dpo(captioner: Captioner, settings: PreferenceConfig, examples: list[Example]) -> dict[str, Any]:
    """The objective restated pair by pair, from separate sequences."""
    captioner.zero_grad()
    terms, margins, sft, tokens = [], [], torch.zeros((), dtype=torch.float64), 0
    with attention_of_transformers(captioner):
        for example in examples:
            with as_reference(captioner):
                before = [log_probability(captioner, example.image, region)[0] for region in example.regions]
            now = [log_probability(captioner, example.image, region) for region in example.regions]
            length = [count if settings.length_normalized else 1 for _, count in now]
            for chosen, rejected in example.pairs:
                reward = {b: settings.beta * (now[b][0] - before[b]) / length[b] for b in (chosen, rejected)}
                right = torch.sigmoid(reward[chosen] - reward[rejected])
                noise = settings.label_smoothing
                terms.append(-(1 - noise) * torch.log(right) - noise * torch.log(1 - right))
                margins.append(float((reward[chosen] - reward[rejected]).detach()) / settings.beta)
            for chosen in {chosen for chosen, _ in example.pairs}:
                sft, tokens = sft - now[chosen][0], tokens + now[chosen][1]
        preference = torch.stack(terms).mean()
        loss = preference + settings.sft_weight * sft / tokens
        loss.backward()
    return {
        "loss": float(loss.detach()),
        "preference_loss": float(preference.detach()),
        "margin": float(np.mean(margins)),
        "preference_accuracy": float(np.mean(np.array(margins) > 0)),
        **gradients(captioner),
    }


def assert_same(mine: dict[str, Any], other: dict[str, Any]) -> None:
    names = mine.keys() & other.keys()
    assert {"loss", "margin"} <= names
    assert len(names) > 20, "hardly any gradients"
    for name in names:
        assert_close(torch.as_tensor(mine[name]), torch.as_tensor(other[name]), name)


def assert_close(mine: torch.Tensor, other: torch.Tensor, name: str) -> None:
    """Equal up to rounding: transformers' norms compute in float32 (1e-7), and beta times a sum over tokens adds up."""
    assert float((mine - other).norm()) <= 1e-4 * float(other.norm()), name


SETTINGS = [
    PreferenceConfig(),
    PreferenceConfig(beta=2.0, sft_weight=0.0, label_smoothing=0.2),
    PreferenceConfig(beta=1.5, sft_weight=0.5, length_normalized=True),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "smoothed", "per token"])
def test_packed_step_equals_dpo_on_separate_sequences_of_transformers(
    moved: Captioner, settings: PreferenceConfig
) -> None:
    expected = plain_dpo(moved, settings, EXAMPLES)
    assert abs(expected["margin"]) > 0.01
    assert 0 < expected["preference_accuracy"] < 1
    assert_same(step(moved, PreferenceLoss(settings), [EXAMPLES]), expected)


def test_a_step_is_the_same_however_it_is_cut_into_passes(moved: Captioner) -> None:
    objective = PreferenceLoss(PreferenceConfig())
    first, second, third = EXAMPLES
    assert_same(step(moved, objective, [[second], [third, first]]), step(moved, objective, [EXAMPLES]))


def test_pairs_the_wrong_way_round_are_noticed(moved: Captioner) -> None:
    objective = PreferenceLoss(PreferenceConfig(beta=1.0, sft_weight=0.0))
    turned = [replace(each, pairs=tuple((b, a) for a, b in each.pairs)) for each in EXAMPLES]
    right, wrong = step(moved, objective, [EXAMPLES]), step(moved, objective, [turned])
    assert wrong["margin"] == pytest.approx(-right["margin"])
    assert wrong["preference_accuracy"] == pytest.approx(1 - right["preference_accuracy"])
    with pytest.raises(AssertionError):
        assert_same(right, wrong)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_at_the_start_margins_are_0_and_the_loss_is_log_2_exactly(tiny_base: Path, precision: str) -> None:
    captioner = tuned(tiny_base, torch.float64 if precision == "float64" else torch.float32)
    rough = precision == "bfloat16"
    if rough:
        captioner.cast_frozen_base(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=rough):
        found = step(captioner, PreferenceLoss(PreferenceConfig()), [EXAMPLES])
    assert found["margin"] == 0
    assert found["preference_accuracy"] == 0  # none is above
    assert found["preference_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert found["loss"] > math.log(2)  # the second term
    assert any(float(value.abs().max()) > 0 for name, value in found.items() if ".lora_" in name)


def test_the_reference_stays_where_it_was(tiny_base: Path) -> None:
    captioner = tuned(tiny_base)
    batch = packed(captioner, EXAMPLES)
    learning = {name for name, parameter in captioner.named_parameters() if parameter.requires_grad}
    assert learning
    assert not any("reference" in name for name in learning)
    before = captioner(batch)[0]
    shift(captioner, ".lora_", seed=4)
    shift(captioner, "mask_encoder.", seed=5)
    with as_reference(captioner):
        assert torch.equal(captioner(batch)[0], before)
    assert not torch.equal(captioner(batch)[0], before)
    assert {name for name, parameter in captioner.named_parameters() if parameter.requires_grad} == learning


def test_an_error_within_the_reference_leaves_the_captioner_as_it_learns(moved: Captioner) -> None:
    batch = packed(moved, EXAMPLES)
    now = moved(batch)[0]
    with pytest.raises(ZeroDivisionError), as_reference(moved):
        1 / 0  # noqa: B018
    assert torch.equal(moved(batch)[0], now)


def test_the_model_directory_holds_what_learned_and_not_the_reference(moved: Captioner, tmp_path: Path) -> None:
    moved.save_pretrained(tmp_path)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = Captioner.from_pretrained(tmp_path, dtype=torch.float64)
    assert not any("reference" in name for name, _ in loaded.named_parameters())
    batch = packed(moved, EXAMPLES)
    torch.testing.assert_close(loaded(batch), moved(batch), rtol=1e-9, atol=0)


def test_beta_0_is_training_on_with_the_captions_alone(moved: Captioner) -> None:
    found = step(moved, PreferenceLoss(PreferenceConfig(beta=0.0)), [EXAMPLES])
    own = [
        replace(each, regions=tuple(each.regions[place] for place in sorted({c for c, _ in each.pairs})), pairs=())
        for each in EXAMPLES
    ]
    moved.zero_grad()
    batch = packed(moved, own)
    objective = CaptionLoss()
    loss, _ = objective.loss(Engine(moved), batch, whole_step(objective, [batch]))
    loss.backward()
    assert found["loss"] == pytest.approx(math.log(2) + float(loss.detach()), rel=1e-9)
    for name, gradient in gradients(moved).items():
        assert_close(found[name], gradient, name)


def test_losses_of_pairs() -> None:
    policy, reference = torch.tensor([[-3.0, -9.0], [-5.0, -5.0]]), torch.tensor([[-4.0, -8.0], [-5.0, -7.0]])
    losses, margins = preference_losses(policy, reference, beta=0.5)
    assert margins.tolist() == [2.0, -2.0]
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(1))])
    smoothed, _ = preference_losses(policy, reference, beta=0.5, label_smoothing=0.25)
    assert float(smoothed[0]) == pytest.approx(0.75 * float(losses[0]) + 0.25 * float(losses[1]))
