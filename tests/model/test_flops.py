"""The formulas of `ureca.model.flops` against torch's own count of what a forward and a backward pass do."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from support.captioners import drawn_example, plain_loss, tiny_captioner
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ureca.model.attention import both_runs
from ureca.model.captioner import Captioner
from ureca.model.flops import (
    Branch,
    Counts,
    TrainedParts,
    branch_of,
    head,
    limit_speedup,
    mask_encoder_tile,
    packed_counts,
    prefix_tokens,
    single_counts,
    total,
    training_flops,
)
from ureca.model.mask_encoder import MaskTiles
from ureca.model.packing import Example, pack

STAGES = {
    "stage 1": TrainedParts(mask_encoder=True),
    "stage 2": TrainedParts(lora_rank=4),
    "both": TrainedParts(True, 4),
}


def learning_captioner(learns: TrainedParts) -> Captioner:
    captioner = tiny_captioner(dtype=torch.float32)
    if learns.lora_rank:
        captioner.add_lora(rank=learns.lora_rank, dropout=0.0)
    captioner.trainable(2 if learns.lora_rank else 1, tune_mask_encoder=learns.mask_encoder)
    return captioner


def attention_flops(query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
    """FLOPs of the CPU's fused attention, which torch does not count: every pair, masked or not."""
    batch, heads, queries, width = query
    return 4 * batch * heads * queries * key[2] * width


def attention_gradient_flops(
    _: Sequence[int], query: Sequence[int], key: Sequence[int], *__: object, **___: object
) -> int:
    return 2 * attention_flops(query, key)


FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_gradient_flops,
}


def counted(step: Callable[[], Tensor]) -> tuple[float, float]:
    """FLOPs of `step` and of its gradient by torch's count."""
    with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        loss = step()
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


def counts_of(captioner: Captioner, examples: Sequence[Example]) -> list[tuple[int, int, list[Branch]]]:
    """Tiles, prefix tokens and branches of each image, from the processor."""
    processor, found = captioner.processor, []
    for example in examples:
        tiles = len(processor.image_inputs(example.image))
        branches = []
        for region in example.regions:
            kept = len(processor.mask_tiles(region.segmentation).values)
            query, caption = len(processor.branch_ids(region.query)), len(processor.caption_ids(region.caption))
            branches.append(branch_of(mask_tiles=kept, tokens_per_tile=4, query=query, caption=caption))
        found.append((tiles, len(processor.prefix_ids(tiles)), branches))
    return found


def formulas(captioner: Captioner, counts: Counts, learns: TrainedParts) -> tuple[float, float]:
    parts = training_flops(captioner.base.config, captioner.config.mask, counts, learns).values()
    return sum(part.forward for part in parts), sum(part.backward for part in parts)


def score_products(captioner: Captioner, pairs: float) -> float:
    """FLOPs of the language model's products of queries and keys: half of its attention."""
    text = captioner.base.config.text_config
    return text.num_hidden_layers * 2 * text.hidden_size * pairs


EXAMPLES = [drawn_example(3, seed=1, size=(200, 200)), drawn_example(5, seed=2, size=(200, 640))]


@pytest.mark.parametrize("stage", STAGES)
def test_packed_operations_are_the_formula_s_to_the_last_product(stage: str) -> None:
    """But for what attention computes in vain (pairs within its blocks that see nothing), and its scores computed
    once more for the gradient: both are put in here."""
    learns, captioner = STAGES[stage], learning_captioner(STAGES[stage])
    batch = pack(EXAMPLES, captioner.processor, **captioner.pack_options())
    counts = sum((packed_counts(*image) for image in counts_of(captioner, EXAMPLES)), Counts())
    assert batch.counts == counts
    over_prefixes, over_branches = both_runs(batch.layout, torch.device("cpu"))
    prefix_pairs, shared_pairs, branch_pairs = (
        sum(block.queries.numel() * of(block) for block in run.seen)
        for run, of in (
            (over_prefixes, lambda block: block.before.shape[1] + block.own.shape[1]),
            (over_branches, lambda block: block.before.shape[1]),
            (over_branches, lambda block: block.own.shape[1]),
        )
    )
    computed = replace(counts, prefix_pairs=prefix_pairs, shared_pairs=shared_pairs, branch_pairs=branch_pairs)
    layers = captioner.base.config.text_config.num_hidden_layers
    again = score_products(captioner, shared_pairs + branch_pairs)
    if learns.lora_rank:  # the last layer's prefix has no gradient of its scores
        again += score_products(captioner, prefix_pairs) * (layers - 1) / layers
    forward, backward = counted(lambda: captioner(batch)[0])
    expected = formulas(captioner, computed, learns)
    of_head = head(captioner.base.config, counts.caption, learns).backward  # had at once with its loss
    assert (forward, backward) == (expected[0] + of_head, expected[1] + again - of_head)
    # What is left out of the formula: see tests/model/test_attention.py for longer prefixes.
    assert forward - of_head < 1.25 * formulas(captioner, counts, learns)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_operations_of_a_plain_sequence_are_the_formula_s_to_the_last_product(stage: str) -> None:
    """One region behind its own prefix, by transformers' own forward pass; every pair is counted, seen or not."""
    learns, captioner = STAGES[stage], learning_captioner(STAGES[stage])
    examples = [drawn_example(1, seed=2, size=(200, 640))]
    batch = pack(examples, captioner.processor, **captioner.pack_options())
    [image] = counts_of(captioner, examples)
    counts = single_counts(*image)
    found = counted(lambda: plain_loss(captioner, [batch]))
    assert found == formulas(captioner, replace(counts, branch_pairs=counts.branch**2), learns)


@pytest.mark.parametrize("kind", ["tokens", "channels"])
def test_mask_encoder_is_counted_as_it_runs(kind: str) -> None:
    captioner = tiny_captioner(kind=kind, dtype=torch.float32)
    mask = MaskTiles(torch.rand(3, 1, 256, 256), torch.arange(3), (2, 1))
    with FlopCounterMode(display=False) as counter:
        tokens = torch.cat(captioner.mask_encoder([mask, mask]))
        forward = counter.get_total_flops()
        tokens.sum().backward()
    of_tile = mask_encoder_tile(captioner.config.mask)
    assert (forward, counter.get_total_flops() - forward) == (6 * of_tile.forward, 6 * of_tile.backward)


def test_one_region_gains_nothing_and_many_gain_up_to_the_branch_s_own_cost() -> None:
    captioner, learns = tiny_captioner(), TrainedParts(lora_rank=4)
    config, mask = captioner.base.config, captioner.config.mask
    branch = branch_of(mask_tiles=2, tokens_per_tile=4, query=20, caption=12)

    def limit(regions: int) -> float:
        return limit_speedup(config, mask, learns, tiles=7, branches=[branch] * regions)

    # Of the two layers, a prefix's last has gradients only of its keys and values: something is gained even so.
    assert 1 <= limit(1) < 1.5
    assert limit(1) < limit(4) < limit(64)
    alone = total(training_flops(config, mask, single_counts(7, prefix_tokens(config, 7), [branch]), learns))
    shared = packed_counts(7, prefix_tokens(config, 7), [branch])
    without = total(training_flops(config, mask, replace(shared, tiles=0, prefix=0, prefix_pairs=0), learns))
    assert limit(10**6) == pytest.approx(alone / without, rel=1e-3)
    assert limit(64) < alone / without


def test_recomputation_adds_a_forward_of_what_has_a_gradient() -> None:
    captioner = tiny_captioner()
    config, mask = captioner.base.config, captioner.config.mask
    counts = packed_counts(1, prefix_tokens(config, 1), [Branch(40, 10, 1)] * 3)
    for learns, share in ((TrainedParts(lora_rank=4), 1.0), (TrainedParts(mask_encoder=True), 0.5)):
        plain, again = (
            training_flops(config, mask, counts, learns, recompute=recompute)["language_model"]
            for recompute in (False, True)
        )
        added = again.backward - plain.backward
        assert added == plain.forward if share == 1.0 else 0 < added < plain.forward
