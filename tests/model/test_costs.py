"""The formulas of `ureca.model.costs` against torch's own count of what a forward and a backward pass do."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from captioners import drawn_example, tiny_captioner
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ureca.model import Captioner, Example, pack
from ureca.model.costs import (
    Branch,
    Counts,
    Learns,
    branch_of,
    limit_speedup,
    mask_encoder_tile,
    packed_counts,
    prefix_tokens,
    single_counts,
    total,
    training_flops,
)
from ureca.model.mask_encoder import MaskTiles
from ureca.model.packing import IGNORED

STAGES = {"stage 1": Learns(mask_encoder=True), "stage 2": Learns(lora_rank=4), "both": Learns(True, 4)}


def learning_captioner(learns: Learns) -> Captioner:
    captioner = tiny_captioner(dtype=torch.float32)
    if learns.lora_rank:
        captioner.add_lora(rank=learns.lora_rank, dropout=0.0)
    captioner.trainable(2 if learns.lora_rank else 1, tune_mask_encoder=learns.mask_encoder)
    return captioner


def attention_flops(query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
    """Of the CPU's fused attention, which torch does not count: every pair, seen or not."""
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


def counted(step: Callable[[], Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """FLOPs of `step` and of its gradient by torch's count, linear layers and convolutions apart from attention."""
    with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        loss = step()
        forward = split(counter)
        loss.backward()
    return forward, {kind: flops - forward[kind] for kind, flops in split(counter).items()}


def split(counter: FlopCounterMode) -> dict[str, float]:
    found = {"linear": 0.0, "attention": 0.0}
    for operator, flops in counter.get_flop_counts()["Global"].items():
        name = str(operator)
        found["linear" if "mm" in name.replace("bmm", "") or "convolution" in name else "attention"] += flops
    return found


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


def parts_of(captioner: Captioner, counts: Counts, learns: Learns) -> tuple[dict[str, float], dict[str, float]]:
    """What the formulas say, as `counted` splits it."""
    config, mask = captioner.base.config, captioner.config.mask
    parts = training_flops(config, mask, counts, learns)
    # Attention alone: the same without a token, and without the vision tower's linear layers.
    pairs = Counts(prefix_pairs=counts.prefix_pairs, shared_pairs=counts.shared_pairs, branch_pairs=counts.branch_pairs)
    of_pairs = training_flops(config, mask, pairs, learns)["language_model"]
    vision = config.vision_config
    patches = captioner.base.config.image_seq_length + 1
    vision_pairs = 4 * vision.hidden_size * patches**2 * vision.num_hidden_layers * counts.tiles
    forward = {"attention": of_pairs.forward + vision_pairs}
    backward = {"attention": of_pairs.backward}
    forward["linear"] = sum(part.forward for part in parts.values()) - forward["attention"]
    backward["linear"] = sum(part.backward for part in parts.values()) - backward["attention"]
    return forward, backward


EXAMPLES = [drawn_example(3, seed=1, size=(200, 200)), drawn_example(5, seed=2, size=(200, 640))]


@pytest.mark.parametrize("stage", STAGES)
def test_linear_layers_are_counted_to_the_product_and_attention_by_what_is_seen(stage: str) -> None:
    learns, captioner = STAGES[stage], learning_captioner(STAGES[stage])
    examples = [drawn_example(1, seed=2, size=(200, 640))]
    batch = pack(examples, captioner.processor, **captioner.pack_options())
    counts = sum((packed_counts(*image) for image in counts_of(captioner, examples)), Counts())
    assert (batch.labels != IGNORED).sum() == counts.caption
    for found, expected in zip(counted(lambda: captioner(batch)[0]), parts_of(captioner, counts, learns), strict=True):
        # The mask encoder's one batched product counts as attention here.
        assert found["linear"] == pytest.approx(expected["linear"], rel=5e-3)
        # A kernel that masks computes what is masked too: at most twice what is seen.
        assert expected["attention"] <= found["attention"] <= 2.05 * expected["attention"]


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
    captioner, learns = tiny_captioner(), Learns(lora_rank=4)
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
    for learns, share in ((Learns(lora_rank=4), 1.0), (Learns(mask_encoder=True), 0.5)):
        plain, again = (
            training_flops(config, mask, counts, learns, recompute=recompute)["language_model"]
            for recompute in (False, True)
        )
        added = again.backward - plain.backward
        assert added == plain.forward if share == 1.0 else 0 < added < plain.forward
