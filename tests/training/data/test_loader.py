"""Batches of the workers: loss and gradient of a step are equal for any split and any prefetching.

Workers are played one after the other in this process; tests/training/test_stages.py has real ones.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import drawn_row

from ureca.corpus.table import write_regions
from ureca.errors import ConfigError, ImageError, MaskError
from ureca.model.captioner import Captioner
from ureca.training.config import BatchConfig, OptimizerConfig, Stage1Config, WorkersConfig
from ureca.training.data.loader import BatchLoader, make_sampler
from ureca.training.data.table_index import prepare_index
from ureca.training.objectives import CaptionLoss
from ureca.training.plan import Plan

# Images with 1, 5, ... 25 regions: the largest does not fit into the smaller passes below.
REGIONS = (1, 5, 25, 2, 9, 3)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many_regions")
    rows = [drawn_row(folder, number, count) for number, count in enumerate(REGIONS)]
    write_regions(folder / "regions.parquet", rows)
    return folder / "regions.parquet"


@pytest.fixture(scope="module")
def captioner(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    config = Stage1Config(table="t", base=str(tiny_base))
    return Plan.from_config(config, tmp_path_factory.mktemp("plan")).captioner().double()


def plan_of(table: Path, base: Path, directory: Path, *, image_cache_mb: int = 0, **batch: Any) -> Plan:
    config = Stage1Config(
        table=str(table),
        heldout=0.0,
        base=str(base),
        batch=BatchConfig(**batch),
        optimizer=OptimizerConfig(learning_rate=1e-3, epochs=4.0),
        workers=WorkersConfig(image_cache_mb=image_cache_mb),
    )
    plan = Plan.from_config(config, directory)
    prepare_index(plan.table, directory, plan.processor(), heldout=0.0, heldout_seed=0, has_begun=False)
    return plan


def trained(plan: Plan, captioner: Captioner, *, num_workers: int, steps: Sequence[int]) -> list[dict[str, Any]]:
    """Counts, summed loss and gradient of steps over workers, played one after the other, as the loop has them."""
    objective = CaptionLoss()
    results: list[dict[str, Any]] = [{"loss": 0.0, "tokens": 0.0, "regions": 0.0} for _ in steps]
    for rank in range(num_workers):
        batches = BatchLoader(
            Path(plan.directory), plan.loader_settings(), captioner, rank=rank, num_workers=num_workers
        )
        batches.enable_feature_cache()
        with batches.begin(steps[0]) as feed:
            for result, step in zip(results, feed, strict=False):
                captioner.zero_grad()
                for one in feed.microbatches(step):
                    share, _ = objective.loss(captioner, one.batch, {"tokens": 1.0})
                    (share * one.weight).backward()
                    counted = one.weighted({**objective.counts(one.batch), "loss": float(share.detach())})
                    for name, value in counted.items():
                        result[name] += value
                result["microbatches"] = step.num_microbatches
                for name, weight in captioner.named_parameters():
                    if weight.requires_grad:
                        assert weight.grad is not None, name
                        result[name] = result.get(name, 0.0) + weight.grad.clone()
    captioner.zero_grad()
    return results


def assert_same(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    for one, two in zip(mine, other, strict=True):
        for name in one.keys() - {"microbatches"}:
            mine_, other_ = (torch.as_tensor(each[name], dtype=torch.float64) for each in (one, two))
            torch.testing.assert_close(mine_, other_, rtol=1e-7, atol=1e-9)


# With how many passes, at least, a worker gets through one of the steps.
CUTS: list[dict[str, Any]] = [
    {"num_workers": 1, "microbatches": 2, "batch": {"tokens_per_device": 1000}},
    {"num_workers": 2, "microbatches": 3, "batch": {"tokens_per_device": 400, "prefetch_threads": 2}},
    {"num_workers": 3, "microbatches": 1, "batch": {"prefetch_steps": 0, "image_cache_mb": 64}},
]


@pytest.mark.parametrize("step", [{"images_per_step": 3}, {"regions_per_step": 22}, {"tokens_per_step": 1400}], ids=str)
def test_loss_and_gradient_of_a_step_are_the_same_however_it_is_cut(
    step: dict[str, int], table: Path, captioner: Captioner, tiny_base: Path, tmp_path: Path
) -> None:
    whole = trained(
        plan_of(table, tiny_base, tmp_path, tokens_per_device=10**6, **step), captioner, num_workers=1, steps=[1, 2]
    )
    assert [result["microbatches"] for result in whole] == [1, 1]
    for cut in CUTS:
        num_workers = cut["num_workers"]
        plan = plan_of(table, tiny_base, tmp_path, **step, **cut["batch"])
        results = trained(plan, captioner, num_workers=num_workers, steps=[1, 2])
        assert max(result["microbatches"] for result in results) >= cut["microbatches"]
        assert_same(results, whole)


def test_a_region_that_is_left_out_is_noticed(
    table: Path, captioner: Captioner, tiny_base: Path, tmp_path: Path
) -> None:
    plan = plan_of(table, tiny_base, tmp_path, images_per_step=3)
    whole = trained(plan, captioner, num_workers=1, steps=[1])
    one_of_two = trained(replace(plan, seed=1), captioner, num_workers=1, steps=[1])
    with pytest.raises(AssertionError):
        assert_same(one_of_two, whole)


def test_a_worker_without_regions_passes_through_the_model_and_adds_nothing(
    table: Path, captioner: Captioner, tiny_base: Path, tmp_path: Path
) -> None:
    plan = plan_of(table, tiny_base, tmp_path, regions_per_step=1)
    whole = trained(plan, captioner, num_workers=1, steps=[4])
    assert_same(trained(plan, captioner, num_workers=3, steps=[4]), whole)


def test_passes_stay_below_their_budget(table: Path, captioner: Captioner, tiny_base: Path, tmp_path: Path) -> None:
    plan = plan_of(table, tiny_base, tmp_path, tokens_per_step=1400, tokens_per_device=500)
    batches = BatchLoader(Path(plan.directory), plan.loader_settings(), captioner, rank=0, num_workers=1)
    with batches.begin(0) as feed:
        for _, step in zip(range(6), feed, strict=False):
            tokens = [one.batch.counts.tokens for one in feed.microbatches(step)]
            assert max(tokens) <= 500
            assert sum(tokens) == step.num_tokens  # one tile: what the index bounds, it knows


def test_a_start_in_the_middle_is_fed_what_the_whole_run_was_fed(
    table: Path, captioner: Captioner, tiny_base: Path, tmp_path: Path
) -> None:
    plan = plan_of(table, tiny_base, tmp_path, tokens_per_step=700, tokens_per_device=400)

    def fed(first: int, last: int) -> list[torch.Tensor]:
        batches = BatchLoader(Path(plan.directory), plan.loader_settings(), captioner, rank=0, num_workers=2)
        with batches.begin(first) as feed:
            some = [one for _, step in zip(range(first, last), feed, strict=False) for one in feed.microbatches(step)]
            return [one.batch.labels for one in some]

    whole = fed(0, 8)
    parts = [*fed(0, 3), *fed(3, 4), *fed(4, 8)]
    assert len(parts) == len(whole) > 8
    assert all(torch.equal(one, two) for one, two in zip(parts, whole, strict=True))


def test_what_does_not_fit_a_pass_or_a_step_is_told_at_once(table: Path, tiny_base: Path, tmp_path: Path) -> None:
    for batch in ({"tokens_per_device": 60}, {"tokens_per_step": 60}):
        plan = plan_of(table, tiny_base, tmp_path, **batch)
        index = prepare_index(plan.table, tmp_path, plan.processor(), heldout=0.0, heldout_seed=0, has_begun=False)
        name = next(iter(batch))
        with pytest.raises(ConfigError, match=rf"batch\.{name}=60: image 'image\d\d' \(64 x 96\)"):
            make_sampler(plan.loader_settings(), index, plan.processor())


def test_an_image_that_goes_missing_is_named_when_its_turn_comes(
    captioner: Captioner, tiny_base: Path, tmp_path: Path
) -> None:
    rows = [drawn_row(tmp_path, number, 2) for number in range(5)]
    write_regions(tmp_path / "t.parquet", rows)
    plan = plan_of(tmp_path / "t.parquet", tiny_base, tmp_path, images_per_step=1)
    Path(rows[3].image_path or "").unlink()
    batches = BatchLoader(Path(plan.directory), plan.loader_settings(), captioner, rank=0, num_workers=1)
    shown = []

    def train() -> None:
        with batches.begin(0) as feed:
            shown.extend(one for step in feed for one in feed.microbatches(step))

    with pytest.raises(ImageError, match=r"'image03':.*image03\.png"):
        train()
    order = [visit.image for step in range(5) for visit in step_index_of(plan, tmp_path).visits(step)]
    assert order.index(3) > 0


def test_a_mask_that_cannot_be_decoded_is_named_when_its_turn_comes(
    captioner: Captioner, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [drawn_row(tmp_path, number, 2) for number in range(3)]
    broken = replace(rows[1].regions[1], segmentation={"size": [64, 96], "counts": "zzzzz"})
    rows[1] = replace(rows[1], regions=(rows[1].regions[0], broken))
    write_regions(tmp_path / "t.parquet", rows)
    monkeypatch.setattr("ureca.training.data.table_scan._IMAGES_LOOKED_AT", 1)  # else the pass over the table finds it
    plan = plan_of(tmp_path / "t.parquet", tiny_base, tmp_path, images_per_step=3)
    batches = BatchLoader(Path(plan.directory), plan.loader_settings(), captioner, rank=0, num_workers=1)

    def train() -> None:
        with batches.begin(0) as feed:
            for step in feed:
                list(feed.microbatches(step))

    with pytest.raises(MaskError, match=r"t\.parquet:.*'image01',.*'1'.*RLE"):
        train()


def step_index_of(plan: Plan, directory: Path) -> Any:
    processor = plan.processor()
    index = prepare_index(plan.table, directory, processor, heldout=0.0, heldout_seed=0, has_begun=True)
    return make_sampler(plan.loader_settings(), index, processor)
