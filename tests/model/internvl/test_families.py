"""A scaled-down copy of each InternVL trains for true: both stages, packed as one region at a time."""

import pytest
import torch
from support.captioners import drawn_example
from support.families import FAMILIES, drawn_weights, processor_for, scaled_down

from ureca.model.captioner import Captioner, CaptionerConfig, weights_hash
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig
from ureca.model.packing import Example, pack
from ureca.model.processor import CaptionerProcessor

KINDS = [(name, False) for name in FAMILIES] + [("qwen2", True)]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0] + ("_tied" if kind[1] else ""))
def captioner(request: pytest.FixtureRequest) -> Captioner:
    name, tied = request.param
    hf = processor_for()
    processor = CaptionerProcessor(hf, tile_limit=6)
    config = scaled_down(
        FAMILIES[name], vocab_size=len(hf.tokenizer), image_token_id=processor.image_token_id, tied=tied
    )
    base = drawn_weights(config).double()
    assert (base.lm_head.weight is base.get_input_embeddings().weight) is tied
    mask = MaskEncoderConfig(tokens_per_tile=4, tile_px=processor.tile_px, hidden_size=128, embedding_norm=0.09)
    encoder = MaskEncoder(mask).double()
    settings = CaptionerConfig(base=name, base_hash=weights_hash(base), tile_limit=6, mask=mask)
    return Captioner(base, encoder, settings, processor).eval()


def gradients(captioner: Captioner, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    captioner.zero_grad()
    loss, _ = captioner(pack(examples, captioner.processor, **captioner.pack_options()))
    loss.backward()
    return float(loss.detach()), {
        name: p.grad.clone() for name, p in captioner.named_parameters() if p.grad is not None
    }


def one_region_at_a_time(captioner: Captioner, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    loss, sums = 0.0, {}
    for example in examples:
        for region in example.regions:
            part, gradient = gradients(captioner, [Example(example.image, (region,))])
            loss += part
            sums = {name: value + sums.get(name, 0) for name, value in gradient.items()}
    return loss, sums


@pytest.mark.parametrize("stage", [1, 2])
def test_both_stages_train_packed_as_one_region_at_a_time(captioner: Captioner, stage: int) -> None:
    examples = [drawn_example(2, seed=0, size=(100, 200)), drawn_example(1, seed=1, size=(120, 110))]
    if stage == 2:
        captioner.add_lora(rank=4, dropout=0.0)
        for name, parameter in captioner.named_parameters():
            if ".lora_B" in name:  # zero at the start, which would leave every lora_A without a gradient
                torch.nn.init.normal_(parameter, std=0.05)
    names = set(captioner.trainable(stage))
    loss, packed = gradients(captioner, examples)
    assert set(packed) == names
    assert all(value.isfinite().all() and value.abs().sum() > 0 for value in packed.values())
    alone, separate = one_region_at_a_time(captioner, examples)
    assert loss == pytest.approx(alone, rel=1e-5)
    for name in names:
        torch.testing.assert_close(packed[name], separate[name], rtol=1e-4, atol=1e-5 * float(packed[name].abs().max()))
    frozen = {name: p.clone() for name, p in captioner.named_parameters() if name not in names}
    optimizer = torch.optim.AdamW([p for p in captioner.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(3):
        last, _ = gradients(captioner, examples)
        optimizer.step()
    assert last < loss
    assert all(torch.equal(p, frozen[name]) for name, p in captioner.named_parameters() if name in frozen)
