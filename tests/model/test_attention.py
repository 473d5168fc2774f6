"""Both ways of packed attention, blocks and FlexAttention, against softmax over a dense mask."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from ureca.model.attention import Block, BlockAttention, Layout, both_runs, may_see

LAYOUTS = {
    "one image": Layout((5,), ((3, 2, 4),)),
    "unlike images": Layout((7, 300, 7), ((3,), (5, 5, 90, 2, 2), (2, 3))),
    "many tiles": Layout((262, 1030), ((9, 40, 11), (50, 7, 8, 9))),
}
HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def dense(layout: Layout) -> tuple[Tensor, Tensor]:
    """Who sees whom, token by token: `(P, P)` in the first run, `(S, P + S)` in the second."""
    prefix = [(image, place) for image, length in enumerate(layout.prefixes) for place in range(length)]
    branch = [
        (image, number, place)
        for image, lengths in enumerate(layout.branches)
        for number, length in enumerate(lengths)
        for place in range(length)
    ]
    within = torch.tensor([[q[0] == k[0] and k[1] <= q[1] for k in prefix] for q in prefix])
    seen = [[q[0] == k[0] for k in prefix] + [q[:2] == k[:2] and k[2] <= q[2] for k in branch] for q in branch]
    return within, torch.tensor(seen)


def formula(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """`(H, S, d)` -> `(S, H, d)`."""
    groups = len(query) // len(key)
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scores = (query @ key.mT * scale).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(0, 1)


def drawn(layout: Layout, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys, values of the branches, and keys and values of the prefixes."""
    draw = torch.Generator().manual_seed(0)
    prefix, branch = sum(layout.prefixes), sum(map(sum, layout.branches))
    shapes = [(HEADS, branch), (KEY_HEADS, branch), (KEY_HEADS, branch), (KEY_HEADS, prefix), (KEY_HEADS, prefix)]
    return [torch.randn(*shape, WIDTH, dtype=torch.float64, generator=draw).to(dtype) for shape in shapes]


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [out, *torch.autograd.grad(out.double().sin().sum(), inputs)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one image", "unlike images"])
def test_blocks_equal_softmax_over_what_is_seen(name: str, dtype: torch.dtype) -> None:
    """Both runs, and all gradients."""
    layout = LAYOUTS[name]
    within, seen = dense(layout)
    over_prefixes, over_branches = both_runs(layout, torch.device("cpu"))
    query, key, value, before_key, before_value = (x.requires_grad_() for x in drawn(layout, dtype))
    wide = [x.detach().double().requires_grad_() for x in (query, key, value, before_key, before_value)]
    rtol, atol = (1e-9, 1e-11) if dtype == torch.float64 else (0.05, 0.1)

    inputs = [query, key, value, before_key, before_value]
    found = with_gradients(BlockAttention.apply(*inputs, over_branches.seen, 0.3), inputs)
    keys, values = torch.cat([wide[3], wide[1]], 1), torch.cat([wide[4], wide[2]], 1)
    expected = with_gradients(formula(wide[0], keys, values, seen, 0.3), wide)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=rtol, atol=atol)

    queries = torch.cat([before_key, before_value]).detach().requires_grad_()
    inputs = [queries, before_key, before_value]
    found = with_gradients(BlockAttention.apply(*inputs, before_key, before_value, over_prefixes.seen, 0.3), inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = with_gradients(formula(*wide, within, 0.3), wide)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["one image", "unlike images"])
def test_flex_attention_equals_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the GPU path, by FlexAttention's reference on the CPU: output and all gradients.

    FlexAttention refuses gradients on CPUs, for want of a kernel; its reference has them.
    """
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    layout, device = LAYOUTS[name], torch.device("cpu")
    inputs = [x.requires_grad_() for x in drawn(layout)]
    query, key, value, before_key, before_value = inputs
    keys, values = torch.cat([before_key, key], 1), torch.cat([before_value, value], 1)
    mask = flex.create_block_mask(may_see(layout, device)[1], None, None, query.shape[1], keys.shape[1], device="cpu")
    out = flex.flex_attention(query[None], keys[None], values[None], block_mask=mask, scale=0.3, enable_gqa=True)
    expected = with_gradients(BlockAttention.apply(*inputs, both_runs(layout, device)[1].seen, 0.3), inputs)
    for mine, other in zip(with_gradients(out[0].transpose(0, 1), inputs), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LAYOUTS)
def test_rule_and_blocks_say_the_same_as_the_definition(name: str) -> None:
    """`may_see`, which FlexAttention asks, and the blocks that matrix products take."""
    layout = LAYOUTS[name]
    for rule, run, expected in zip(
        may_see(layout, "cpu"), both_runs(layout, torch.device("cpu")), dense(layout), strict=True
    ):
        queries, keys = (torch.arange(n) for n in expected.shape)
        zero = torch.tensor(0)
        assert torch.equal(rule(zero, zero, queries[:, None], keys[None]), expected)
        own_at = len(keys) - len(queries)
        assert torch.equal(dense_of_blocks(run.seen, *expected.shape, own_at), expected)


def dense_of_blocks(blocks: tuple[Block, ...], queries: int, keys: int, own_at: int) -> Tensor:
    """Every query must stand in one block, once."""
    seen, times = torch.zeros(queries, keys, dtype=torch.bool), torch.zeros(queries)
    for block in blocks:
        for row in range(len(block)):
            own = block.own[row if len(block.own) > 1 else 0]
            for at, query in enumerate(block.queries[row].tolist()):
                if block.real is None or block.real[row, at]:
                    seen[query, block.before[row]] = True
                    seen[query, block.queries[row][own[at]] + own_at] = True
                    times[query] += 1
    assert bool((times == 1).all())
    return seen


def test_keys_that_ask_for_no_gradient_get_none_and_change_nothing() -> None:
    """Stage 1: the prefix does not learn."""
    layout = LAYOUTS["unlike images"]
    blocks = both_runs(layout, torch.device("cpu"))[1].seen
    inputs = [x.requires_grad_() for x in drawn(layout)]
    every = with_gradients(BlockAttention.apply(*inputs, blocks, 0.3), inputs)
    frozen = [*inputs[:3], *(x.detach() for x in inputs[3:])]
    some = with_gradients(BlockAttention.apply(*frozen, blocks, 0.3), frozen[:3])
    for mine, other in zip(some, every[:4], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_gradient_of_block_attention_is_that_of_its_numbers() -> None:
    layout = LAYOUTS["one image"]
    blocks = both_runs(layout, torch.device("cpu"))[1].seen
    inputs = [x.requires_grad_() for x in drawn(layout)]
    assert torch.autograd.gradcheck(lambda *given: BlockAttention.apply(*given, blocks, 0.3), inputs)


def test_blocks_compute_little_in_vain() -> None:
    """Captions of 30 to 90 tokens behind 1,798: computed scores over required scores."""
    draw = torch.Generator().manual_seed(0)
    lengths = tuple(torch.randint(30, 90, (40,), generator=draw).tolist())
    layout = Layout((1798,), (lengths,))
    over_prefixes, over_branches = both_runs(layout, torch.device("cpu"))
    made = [
        sum(b.queries.numel() * (b.before.shape[1] + b.own.shape[1]) for b in run.seen)
        for run in (over_prefixes, over_branches)
    ]
    asked = [1798 * 1799 / 2, sum(n * 1798 + n * (n + 1) / 2 for n in lengths)]
    assert made[0] / asked[0] < 1.2
    assert made[1] / asked[1] < 1.2
