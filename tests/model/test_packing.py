"""Packed = one region at a time: loss and every gradient, to 1e-5 relative in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.captioners import drawn_example, plain_loss, tiny_captioner

import ureca.model.captioner as captioner_module
from ureca.model.attention import BranchRun, Layout, PrefixRun, both_runs
from ureca.model.captioner import Captioner
from ureca.model.loss_head import LossHead
from ureca.model.packing import Example, pack


def with_shared_bins() -> Example:
    """One long caption, and others so short that they share bins."""
    example = drawn_example(6, seed=4, size=(200, 200))
    first, *rest = example.regions
    return replace(example, regions=(replace(first, caption=" ".join(["left"] * 50)), *rest))


def loss_and_gradients(captioner: Captioner, examples: list[Example]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Summed loss over `examples`, packed into one batch, and the gradient of each parameter."""
    captioner.zero_grad()
    loss, count = captioner(pack(examples, captioner.processor, **captioner.pack_options()))
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in captioner.named_parameters() if p.grad is not None}
    return loss.detach() / count, {n: g / count for n, g in gradients.items()}


def one_region_at_a_time(captioner: Captioner, examples: list[Example]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    captioner.zero_grad()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for example in examples:
        for region in example.regions:
            single = Example(example.image, (region,))
            loss, count = captioner(pack([single], captioner.processor, **captioner.pack_options()))
            loss.backward()
            total, tokens = total + loss.detach(), tokens + count
    gradients = {n: p.grad.clone() / tokens for n, p in captioner.named_parameters() if p.grad is not None}
    return total / tokens, gradients


def assert_same(left: tuple, right: tuple) -> None:
    torch.testing.assert_close(left[0], right[0], rtol=1e-5, atol=1e-12)
    assert left[1].keys() == right[1].keys()
    for name in left[1]:
        torch.testing.assert_close(left[1][name], right[1][name], rtol=1e-5, atol=1e-9, msg=f"gradient of {name}")


def by_transformers(captioner: Captioner, examples: list[Example]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Every region a separate sequence through transformers' own forward pass: none of our attention or head."""
    captioner.zero_grad()
    options = captioner.pack_options()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for example in examples:
        for region in example.regions:
            batch = pack([Example(example.image, (region,))], captioner.processor, **options)
            loss = plain_loss(captioner, [batch])
            loss.backward()
            total, tokens = total + loss.detach(), tokens + batch.counts.caption
    gradients = {n: p.grad.clone() / tokens for n, p in captioner.named_parameters() if p.grad is not None}
    return total / tokens, gradients


def with_lora(captioner: Captioner) -> None:
    """LoRA that changes something: its second matrices are zero at first."""
    captioner.add_lora(rank=4, dropout=0.0)
    for name, parameter in captioner.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


ONE_TILE, SEVEN, THIRTEEN = (200, 200), (300, 500), (300, 400)
"""Sizes (height, width) that a captioner with that limit cuts into that many tiles, thumbnail included."""


@pytest.fixture(scope="module", params=["tokens", "channels"])
def wide_captioner(request: pytest.FixtureRequest) -> Captioner:
    """Up to twelve tiles and a thumbnail, either mask encoder."""
    return tiny_captioner(kind=request.param, tile_limit=12)


def test_images_of_one_to_thirteen_tiles_pack_into_one_batch(wide_captioner: Captioner) -> None:
    sizes = [ONE_TILE, SEVEN, THIRTEEN]
    examples = [drawn_example(n, seed=n, size=size) for n, size in zip((3, 2, 2), sizes, strict=True)]
    tiles = [len(wide_captioner.processor.image_inputs(np.asarray(e.image))) for e in examples]
    assert tiles == [1, 7, 13]
    found = loss_and_gradients(wide_captioner, examples)
    assert_same(found, by_transformers(wide_captioner, examples))


@pytest.mark.parametrize(("kind", "tuned"), [("tokens", False), ("channels", True)])
def test_lora_s_loss_and_gradients_are_those_of_transformers_own_forward_pass(kind: str, tuned: bool) -> None:
    """Stage 2: gradients reach the prefixes too, through LoRA on the layers that run over them."""
    captioner = tiny_captioner(kind=kind)
    with_lora(captioner)
    captioner.trainable(2, tune_mask_encoder=tuned)
    examples = [drawn_example(3, seed=1, size=ONE_TILE), drawn_example(1, seed=2, size=SEVEN)]
    packed = loss_and_gradients(captioner, examples)
    of_lora = [name for name in packed[1] if ".lora_" in name]
    assert len(of_lora) == 2 * 2 * 7  # two layers, two matrices for each of seven linear ones
    assert (len(of_lora) < len(packed[1])) is tuned
    assert all(gradient.abs().max() > 1e-6 for gradient in packed[1].values())
    assert_same(packed, by_transformers(captioner, examples))


def test_lora_without_the_prefix_s_share_of_its_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = tiny_captioner()
    with_lora(captioner)
    captioner.trainable(2)
    examples = [drawn_example(3, seed=1, size=ONE_TILE)]
    expected = by_transformers(captioner, examples)
    own = captioner._language_model

    def without_gradient(embeddings: torch.Tensor, positions: torch.Tensor, run: PrefixRun | BranchRun) -> torch.Tensor:
        with torch.set_grad_enabled(isinstance(run, BranchRun)):
            return own(embeddings, positions, run)

    monkeypatch.setattr(captioner, "_language_model", without_gradient)
    found = loss_and_gradients(captioner, examples)
    torch.testing.assert_close(found[0], expected[0])
    with pytest.raises(AssertionError, match="gradient of"):
        assert_same(found, expected)


def test_an_image_split_over_several_passes_has_the_same_loss_and_gradients(tiny_captioner_f64: Captioner) -> None:
    """Loss and gradients are sums over caption tokens: the passes of a step add up, however its regions are cut."""
    captioner, whole = tiny_captioner_f64, drawn_example(7, seed=3)
    parts = [replace(whole, regions=whole.regions[at : at + 3]) for at in (0, 3, 6)]
    options = captioner.pack_options()
    captioner.zero_grad()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for part in parts:
        loss, count = captioner(pack([part], captioner.processor, **options))
        loss.backward()
        total, tokens = total + loss.detach(), tokens + int(count)
    gradients = {n: p.grad.clone() / tokens for n, p in captioner.named_parameters() if p.grad is not None}
    expected = loss_and_gradients(captioner, [whole])
    assert_same((total / tokens, gradients), expected)
    # A mean of the parts' means is another loss: captions are of unlike lengths, the last part holds one alone.
    means = [loss_and_gradients(captioner, [part])[0] for part in parts]
    assert abs(sum(means) / 3 - expected[0]) > 1e-6


@pytest.mark.parametrize("stage", [1, 2])
def test_recomputed_activations_change_neither_loss_nor_gradients(stage: int) -> None:
    """A layer that ran over prefixes runs once more for its gradient: keys and values must not be kept twice."""
    captioner = tiny_captioner()
    examples = [drawn_example(3, seed=1, size=ONE_TILE), drawn_example(2, seed=2)]
    if stage == 2:
        with_lora(captioner)
    captioner.trainable(stage, tune_mask_encoder=True)
    expected = loss_and_gradients(captioner, examples)
    calls: list[int] = []
    layer = captioner.base.model.language_model.layers[0].mlp
    handle = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    captioner.checkpoint_activations()
    found = loss_and_gradients(captioner, examples)
    handle.remove()
    # Over prefixes and branches, and once more each; in stage 1 prefixes have no gradient.
    assert len(calls) == (3 if stage == 1 else 4)
    assert_same(found, expected)


def test_a_recomputation_that_replaced_the_prefix_s_states_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were branches to read what a second run over other prefixes left, their gradients would differ."""
    captioner = tiny_captioner()
    captioner.trainable(1)
    examples = [drawn_example(3, seed=1, size=ONE_TILE)]
    expected = loss_and_gradients(captioner, examples)
    captioner.checkpoint_activations()
    wrong = {}

    def lost(layout: Layout, device: torch.device) -> tuple[PrefixRun, BranchRun]:
        wrong["runs"] = both_runs(layout, device)
        return wrong["runs"]

    monkeypatch.setattr(captioner_module, "both_runs", lost)
    captioner.zero_grad()
    loss, count = captioner(pack(examples, captioner.processor, **captioner.pack_options()))
    states = wrong["runs"][0].states
    for layer, (key, value) in states.items():
        states[layer] = (key * 2, value)
    loss.backward()
    gradients = {n: p.grad.clone() / count for n, p in captioner.named_parameters() if p.grad is not None}
    with pytest.raises(AssertionError):
        assert_same((loss.detach() / count, gradients), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_frozen_head_s_loss_and_gradient_are_torch_s(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False, dtype=dtype).requires_grad_(False)
    LossHead.convert(head)
    hidden = torch.randn(600, 16, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, 50, (600,), generator=draw)
    weights = torch.rand(600, generator=draw, dtype=torch.float64)
    losses = head(hidden, labels)
    (found,) = torch.autograd.grad((losses * weights).sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact @ head.weight.double().T, labels, reduction="none")
    (gradient,) = torch.autograd.grad((expected * weights).sum(), exact)
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (0.05, 0.02)
    torch.testing.assert_close(losses.double(), expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(found.double(), gradient, rtol=rtol, atol=atol)
    assert not torch.allclose(losses.double().roll(1), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("num_regions", [[1], [3], [2, 5]], ids=str)
def test_packed_loss_and_gradients_equal_separate_sequences(
    tiny_captioner_f64: Captioner, num_regions: list[int]
) -> None:
    examples = [drawn_example(n, seed=i) for i, n in enumerate(num_regions)]
    assert_same(loss_and_gradients(tiny_captioner_f64, examples), one_region_at_a_time(tiny_captioner_f64, examples))


def test_images_of_other_grids_pack_into_one_batch(tiny_captioner_f64: Captioner) -> None:
    examples = [drawn_example(2, seed=1, size=(200, 200)), drawn_example(2, seed=2, size=(200, 640))]
    assert_same(loss_and_gradients(tiny_captioner_f64, examples), one_region_at_a_time(tiny_captioner_f64, examples))


def test_branches_that_share_a_bin_do_not_see_each_other(tiny_captioner_f64: Captioner) -> None:
    examples = [with_shared_bins()]
    batch = pack(examples, tiny_captioner_f64.processor, **tiny_captioner_f64.pack_options())
    _, over_branches = both_runs(batch.layout, torch.device("cpu"))
    assert sum(len(block.queries) for block in over_branches.seen) < batch.num_regions
    assert_same(loss_and_gradients(tiny_captioner_f64, examples), one_region_at_a_time(tiny_captioner_f64, examples))


def test_regions_without_a_cue_pack_too(tiny_captioner_f64: Captioner) -> None:
    examples = [drawn_example(3, seed=3, cue=False)]
    assert_same(loss_and_gradients(tiny_captioner_f64, examples), one_region_at_a_time(tiny_captioner_f64, examples))


def test_attention_leaking_between_branches_is_noticed(
    tiny_captioner_f64: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [with_shared_bins()]
    separate = one_region_at_a_time(tiny_captioner_f64, examples)

    def leaky(layout: Layout, device: torch.device) -> tuple[PrefixRun, BranchRun]:
        """All branches of an image as one: each sees those before it."""
        return both_runs(replace(layout, branches=tuple((sum(of_image),) for of_image in layout.branches)), device)

    monkeypatch.setattr(captioner_module, "both_runs", leaky)
    with pytest.raises(AssertionError):
        assert_same(loss_and_gradients(tiny_captioner_f64, examples), separate)


def test_attention_leaking_between_images_is_noticed(
    tiny_captioner_f64: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [drawn_example(2, seed=1, size=(200, 200)), drawn_example(2, seed=2, size=(200, 200))]
    separate = one_region_at_a_time(tiny_captioner_f64, examples)

    def leaky(layout: Layout, device: torch.device) -> tuple[PrefixRun, BranchRun]:
        """One prefix: the second image's sees the first's, and branches see both."""
        prefixes, branches = (sum(layout.prefixes),), (sum(layout.branches, ()),)
        return both_runs(Layout(prefixes, branches), device)

    monkeypatch.setattr(captioner_module, "both_runs", leaky)
    with pytest.raises(AssertionError):
        assert_same(loss_and_gradients(tiny_captioner_f64, examples), separate)


def test_positions_that_do_not_restart_are_noticed(tiny_captioner_f64: Captioner) -> None:
    captioner = tiny_captioner_f64
    examples = [with_shared_bins()]
    batch = pack(examples, captioner.processor, **captioner.pack_options())
    right, _ = captioner(batch)
    batch.position_ids[:] = batch.position_ids[0] + torch.arange(len(batch.position_ids))
    wrong, _ = captioner(batch)
    assert abs(float(right - wrong)) > 1e-6


def test_labels_cover_the_caption_and_the_end_marker_only(tiny_captioner_f64: Captioner) -> None:
    processor = tiny_captioner_f64.processor
    batch = pack([drawn_example(1, seed=5)], processor, **tiny_captioner_f64.pack_options())
    labels = batch.labels[batch.labels != -100]
    assert labels.tolist() == processor.caption_ids(drawn_example(1, seed=5).regions[0].caption)
    assert labels[-1] == processor.end_token_id


@pytest.mark.parametrize("cue", [True, False])
def test_image_tokens_computed_before_change_nothing(tiny_captioner_f64: Captioner, cue: bool) -> None:
    captioner = tiny_captioner_f64
    examples = [drawn_example(2, seed=1, size=(200, 200), cue=cue), drawn_example(3, seed=2, size=(200, 640), cue=cue)]
    pixels = [captioner.processor.image_inputs(np.asarray(example.image)).double() for example in examples]
    known = [
        replace(example, image=captioner.image_features(values))
        for example, values in zip(examples, pixels, strict=True)
    ]
    assert_same(loss_and_gradients(captioner, known), loss_and_gradients(captioner, examples))
