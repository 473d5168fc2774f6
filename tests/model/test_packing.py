"""Packed = one region at a time: loss and every gradient, to 1e-5 relative in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captioners import drawn_example

import ureca.model.captioner as captioner_module
from ureca.model import Captioner, Example, pack
from ureca.model.attention import BranchRun, Layout, PrefixRun, both_runs


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
