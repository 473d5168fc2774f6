"""Packed = one region at a time: loss and every gradient, to 1e-5 relative in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ureca.model.captioner as captioner_module
from ureca.model import Captioner, Example, RegionExample, pack
from ureca.model.packing import PADDING, PREFIX, BranchLayout, attend
from ureca.regions.rle import encode_mask


def drawn_example(num_regions: int, *, seed: int, size: tuple[int, int] = (300, 500), cue: bool = True) -> Example:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    regions = []
    for number in range(num_regions):
        y, x = rng.integers(0, size[0] - 60), rng.integers(0, size[1] - 80)
        mask = np.zeros(size, dtype=bool)
        mask[y : y + rng.integers(4, 60), x : x + rng.integers(4, 80)] = True
        caption = " ".join(rng.choice(["a", "red", "round", "part", "left", "picture"], size=3 + number % 5))
        regions.append(RegionExample(encode_mask(mask) if cue else None, "describe this region.", caption))
    return Example(image, tuple(regions))


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
        torch.testing.assert_close(
            left[1][name], right[1][name], rtol=1e-5, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("num_regions", [[1], [3], [2, 5]], ids=str)
def test_packed_loss_and_gradients_equal_separate_sequences(
    tiny_captioner_f64: Captioner, num_regions: list[int]
) -> None:
    examples = [drawn_example(n, seed=i) for i, n in enumerate(num_regions)]
    assert_same(loss_and_gradients(tiny_captioner_f64, examples), one_region_at_a_time(tiny_captioner_f64, examples))


def test_images_of_other_grids_pack_into_one_batch(tiny_captioner_f64: Captioner) -> None:
    examples = [drawn_example(2, seed=1, size=(200, 200)), drawn_example(2, seed=2, size=(200, 640))]
    assert_same(loss_and_gradients(tiny_captioner_f64, examples), one_region_at_a_time(tiny_captioner_f64, examples))


def test_regions_without_a_cue_pack_too(tiny_captioner_f64: Captioner) -> None:
    examples = [drawn_example(3, seed=3, cue=False)]
    assert_same(loss_and_gradients(tiny_captioner_f64, examples), one_region_at_a_time(tiny_captioner_f64, examples))


def test_attention_leaking_between_branches_is_noticed(
    tiny_captioner_f64: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [drawn_example(3, seed=4)]
    separate = one_region_at_a_time(tiny_captioner_f64, examples)

    def leaky(branch: torch.Tensor) -> BranchLayout:
        """All branches of a row as one: each sees those before it."""
        return BranchLayout.of(branch.clamp(max=0))

    monkeypatch.setattr(captioner_module, "BranchLayout", SimpleNamespace(of=leaky))
    with pytest.raises(AssertionError):
        assert_same(loss_and_gradients(tiny_captioner_f64, examples), separate)


def test_positions_that_do_not_restart_are_noticed(tiny_captioner_f64: Captioner) -> None:
    captioner = tiny_captioner_f64
    examples = [drawn_example(3, seed=4)]
    batch = pack(examples, captioner.processor, **captioner.pack_options())
    right, _ = captioner(batch)
    batch.position_ids[:] = torch.arange(batch.position_ids.shape[1])
    wrong, _ = captioner(batch)
    assert abs(float(right - wrong)) > 1e-6


def test_labels_cover_the_caption_and_the_end_marker_only(tiny_captioner_f64: Captioner) -> None:
    processor = tiny_captioner_f64.processor
    batch = pack([drawn_example(1, seed=5)], processor, **tiny_captioner_f64.pack_options())
    labels = batch.labels[0][batch.labels[0] != -100]
    assert labels.tolist() == processor.caption_ids(drawn_example(1, seed=5).regions[0].caption)
    assert labels[-1] == processor.end_token_id


def test_attention_equals_one_dense_mask() -> None:
    """`attend` against scaled dot product attention under the (S, S) mask that the layout stands for."""
    branch = torch.tensor([[PREFIX, PREFIX, PREFIX, 0, 0, 1, 1, 1], [PREFIX, PREFIX, 0, 0, 0, 1, PADDING, PADDING]])
    causal = torch.ones(8, 8, dtype=torch.bool).tril()
    key, query = branch[:, None, :], branch[:, :, None]
    dense = (causal & ((key == PREFIX) | (key == query)))[:, None]
    q, k, v = torch.randn(3, 2, 4, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    found = attend(q, k, v, BranchLayout.of(branch), 16**-0.5)
    kept = (branch != PADDING)[:, None, :, None].expand_as(found)
    torch.testing.assert_close(found[kept], expected[kept])
