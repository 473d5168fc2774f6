"""Looks at held-out images: the right ones, the captioner's own captions, and the training as without."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.labeled_scenes import scene_row
from support.paths import SUPPORT
from support.trainings import select_images

from ureca.config import config_to_dict
from ureca.corpus.schema import ImageRow
from ureca.corpus.split import split_heldout
from ureca.corpus.table import iter_images, load_image, write_regions
from ureca.errors import ConfigError, InputError
from ureca.model.captioner import Captioner
from ureca.model.processor import CaptionerProcessor
from ureca.training.config import (
    BatchConfig,
    CheckpointConfig,
    EvalConfig,
    LoraConfig,
    OptimizerConfig,
    Stage1Config,
    Stage2Config,
    WorkersConfig,
)
from ureca.training.launch import fit
from ureca.training.monitor.inloop_eval import (
    CAPTIONS_FILE,
    InLoopEvaluator,
    eval_directory,
    preserve_state,
    read_eval_images,
)
from ureca.training.monitor.metrics import read_metrics
from ureca.training.plan import Plan

HELDOUT = 0.35  # of the table's images: 00, 01, 02, 06, and one that is quarantined


def config(table: Path, base: Path, **more: Any) -> Stage1Config:
    settings = {"eval": EvalConfig(every_steps=2, images=3), "heldout": HELDOUT, **more}
    return Stage1Config(table=str(table), base=str(base), **settings)


def selected_ids(plan: Plan) -> list[str]:
    select_images(plan)
    return [row.image_id for row in read_eval_images(plan.directory)]


def test_the_same_held_out_images_are_watched_in_every_run(region_table: Path, tiny_base: Path, tmp_path: Path) -> None:
    plan = Plan.from_config(config(region_table, tiny_base), tmp_path / "a")
    chosen = selected_ids(plan)
    heldout = split_heldout([row.image_id for row in iter_images(region_table)], HELDOUT).heldout
    assert len(chosen) == 3
    assert set(chosen) < set(heldout) - {"broken"}
    assert selected_ids(Plan.from_config(config(region_table, tiny_base, seed=5), tmp_path / "b")) == chosen
    write_regions(tmp_path / "other_order.parquet", list(iter_images(region_table))[::-1])
    assert selected_ids(Plan.from_config(config(tmp_path / "other_order.parquet", tiny_base), tmp_path / "c")) == chosen


def test_a_table_that_has_changed_is_noticed(region_table: Path, tiny_base: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.parquet"
    table.write_bytes(region_table.read_bytes())
    plan = Plan.from_config(config(table, tiny_base), tmp_path / "run")
    select_images(plan)
    write_regions(table, list(iter_images(region_table))[:3])
    with pytest.raises(InputError, match="training"):
        read_eval_images(plan.directory)


def test_nothing_to_look_at_is_told_before_training(region_table: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="held-out"):
        config(region_table, tiny_base, heldout=0.0)
    bare = tmp_path / "bare.parquet"
    rows = [
        row if row.status == "quarantined" else replace(row, status="unlabeled") for row in iter_images(region_table)
    ]
    write_regions(bare, rows)
    with pytest.raises(InputError, match="held-out"):
        select_images(Plan.from_config(config(bare, tiny_base), tmp_path))
    unknown = EvalConfig(every_steps=2, score="attribute_accuracy")
    with pytest.raises(InputError, match="scenes"):
        select_images(Plan.from_config(config(region_table, tiny_base, eval=unknown), tmp_path))


def test_a_look_leaves_modes_and_random_states_as_they_were(tiny_base: Path) -> None:
    captioner = Captioner.from_base(str(tiny_base), tile_limit=1, tokens_per_tile=4)
    captioner.add_lora(rank=2)  # its dropout trains while all else is in evaluation mode
    modes = [module.training for module in captioner.modules()]
    assert {True, False} == set(modes)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with preserve_state(captioner):
        assert not any(module.training for module in captioner.modules())
        torch.rand(5)
    assert [module.training for module in captioner.modules()] == modes
    assert torch.equal(torch.rand(2), expected)
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("alone")
def test_a_look_captions_scores_and_draws(tiny_base: Path, tmp_path: Path) -> None:
    rows = [scene_row(seed) for seed in range(2)]
    write_regions(tmp_path / "scenes.parquet", rows)
    eval_config = EvalConfig(every_steps=5, regions_per_image=3, max_new_tokens=6, pictures=1)
    plan = Plan.from_config(
        config(tmp_path / "scenes.parquet", tiny_base, heldout=0.5, eval=eval_config), tmp_path / "run"
    )
    assert select_images(plan) == 1
    looking = InLoopEvaluator(plan.directory, plan.eval, cue=plan.cue, in_lockstep=False, rank=0, num_workers=1)
    assert [step for step in range(1, 13) if looking.due(step, 12)] == [5, 10, 12]

    captioner = plan.captioner()
    look = looking.evaluate(captioner, 5)
    assert set(look.scores) == {"rouge_l", "attribute_accuracy", "uniqueness"}
    folder = eval_directory(tmp_path / "run", 5)
    assert [json.loads(line) for line in (folder / CAPTIONS_FILE).read_text().splitlines()] == look.records
    [row] = read_eval_images(plan.directory)
    regions = {region.region_id: region for region in row.regions}
    query = captioner.processor.query("unique")
    for record in look.records:
        region = regions[record["region_id"]]
        assert record["reference"] == region.caption
        [expected] = captioner.generate(load_image(row), [region.segmentation], [query], max_new_tokens=6)
        assert record["caption"] == expected
    assert len(look.records) == 3
    [picture] = folder.glob("*.jpg")
    with Image.open(picture) as drawn:
        assert np.asarray(drawn).std() > 10

    # The labels themselves, said by a captioner that knows them: the scores are those of what was said.
    class Knows:
        processor = captioner.processor

        def modules(self) -> list[Any]:
            return []

        def eval(self) -> None: ...

        def generate(self, image: Any, segmentations: Any, queries: Any, **_: Any) -> list[str]:  # noqa: ARG002
            labels = {region.segmentation["counts"]: region.caption or "" for region in row.regions}
            return [labels[each["counts"]] for each in segmentations]

    known = looking.evaluate(Knows(), 10)  # type: ignore[arg-type]
    assert known.scores["rouge_l"] == 1.0
    assert known.scores["attribute_accuracy"] == 1.0


# ---- with DeepSpeed, two processes

WAYS = {
    "zero1": {"zero_stage": 1, "looks": True},
    "zero1_without": {"zero_stage": 1, "looks": False},
    "zero1_careless": {"zero_stage": 1, "looks": True, "careless": True},
    "zero2": {"zero_stage": 2, "looks": True},
    "zero2_without": {"zero_stage": 2, "looks": False},
    # Last: DeepSpeed then puts a linear function in torch's place, for the whole process.
    "zero3": {"zero_stage": 3, "looks": True},
    "zero3_without": {"zero_stage": 3, "looks": False},
}


@pytest.fixture(scope="module")
def ending_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, with the token that ends a caption so much likelier that some captions end at once."""
    folder = tmp_path_factory.mktemp("base") / "ending"
    shutil.copytree(tiny_base, folder)
    weights = load_file(folder / "model.safetensors")
    end = CaptionerProcessor.from_pretrained(str(folder), tile_limit=1).end_token_id
    weights["language_model.model.embed_tokens.weight"][end] *= 3.8  # the head's too
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def stage2_plan(ending_base: Path, region_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("stage2")
    first = Plan.from_config(config(region_table, ending_base), folder / "stage1")
    first.captioner().save_pretrained(folder / "stage1" / "model")
    second = Stage2Config(
        table=str(region_table),
        base=str(ending_base),
        init=str(folder / "stage1" / "model"),
        heldout=HELDOUT,
        eval=EvalConfig(every_steps=1, images=3, regions_per_image=2, max_new_tokens=10, pictures=1),
        lora=LoraConfig(rank=2, dropout=0.3),
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    return Plan.from_config(second, folder / "run")


@pytest.fixture(scope="module")
def looked(stage2_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Way -> what each of two workers found."""
    folder = tmp_path_factory.mktemp("looks")
    tasks = []
    for name, way in WAYS.items():
        workers = replace(stage2_plan.workers, zero_stage=way["zero_stage"])
        plan = replace(stage2_plan, workers=workers, directory=str(folder / name))
        select_images(plan)
        received = {
            "looks": way["looks"],
            "careless": way.get("careless", False),
            "output": str(folder / f"{name}.json"),
        }
        tasks.append({"plan": config_to_dict(plan), **received})
    (folder / "tasks.json").write_text(json.dumps(tasks))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "inloop_eval_worker.py"), str(folder / "tasks.json")],
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": os.pathsep.join(sys.path)},
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=900)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(each[-3000:] for each in errors)
    return {name: [json.loads((folder / f"{name}.json.{rank}").read_text()) for rank in range(2)] for name in WAYS}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["zero1", "zero2", "zero3"])
def test_losses_are_those_of_a_training_without_looks_to_the_last_bit(
    way: str, looked: dict[str, list[dict[str, Any]]]
) -> None:
    for mine, other in zip(looked[way], looked[f"{way}_without"], strict=True):
        assert mine["losses"] == other["losses"]


@pytest.mark.slow
def test_a_look_that_disturbs_the_training_is_noticed(looked: dict[str, list[dict[str, Any]]]) -> None:
    assert looked["zero1_careless"][0]["losses"] != looked["zero1_without"][0]["losses"]


@pytest.mark.slow
def test_captions_are_the_captioner_s_own_whichever_worker_makes_them(
    looked: dict[str, list[dict[str, Any]]], stage2_plan: Plan
) -> None:
    select_images(stage2_plan)
    captioner = stage2_plan.captioner().eval()
    expected = []
    for row in read_eval_images(stage2_plan.directory):
        regions = [row.regions[index] for index in watched_regions(row)]
        queries = [captioner.processor.query("unique")] * len(regions)
        segmentations = [region.segmentation for region in regions]
        expected += captioner.generate(load_image(row), segmentations, queries, max_new_tokens=10)
    # Of ZeRO 3's workers one is done while the other goes on, and the other way round.
    assert [bool(caption) for caption in expected] == [True, True, False, False, False]
    for way in ("zero1", "zero2", "zero3"):
        for worker in looked[way]:
            assert worker["captions"][0] == expected
            assert worker["scores"] == looked["zero1"][0]["scores"]


def watched_regions(row: ImageRow) -> tuple[int, ...]:
    from ureca.training.monitor.inloop_eval import EvalImage

    return EvalImage.of(row, regions=2).regions


# ---- on Ray: where scores, pictures and the panel go


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_leaves_scores_pictures_panel_plot_and_record(
    region_table: Path, tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stage1 = config(
        region_table,
        tiny_base,
        eval=EvalConfig(every_steps=2, images=2, max_new_tokens=8, pictures=1),
        batch=BatchConfig(images_per_step=1),
        optimizer=OptimizerConfig(learning_rate=1e-3, epochs=1.0),
        workers=WorkersConfig(num_workers=1, max_failures=0),
        checkpoints=CheckpointConfig(every_steps=2, keep_best=1),
    )
    result = fit(stage1, tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "heldout" in line] == [2, 3]
    for line in lines:
        assert 0 < line["mfu"] < 1
        assert 0 <= line["padding_share"] < 1
        assert 0 <= line["data_wait_share"] <= 1
        assert line["tokens_per_second"] > line["regions_per_second"] > 0
    scores = lines[-1]["heldout"]
    assert result.heldout == {name: scores[name] for name in ("rouge_l", "uniqueness")}

    records = [json.loads(text) for text in (eval_directory(tmp_path, 3) / CAPTIONS_FILE).read_text().splitlines()]
    assert {record["image_id"] for record in records} == set(selected_ids(Plan.from_config(stage1, tmp_path)))
    [picture] = eval_directory(tmp_path, 3).glob("*.jpg")
    with Image.open(picture) as drawn:
        assert np.asarray(drawn).std() > 10
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    with Image.open(tmp_path / "training.png") as plot:
        assert plot.width > 1000

    assert "step 3/3  loss " in capfd.readouterr().err
    record = json.loads((Path(result.model) / "training.json").read_text())
    [stage] = record["stages"]
    assert stage["figures"]["steps"] == 3
    assert stage["eval_scores"] == result.heldout
    assert stage["data"]["images"] == 3
    assert stage["data"]["describers"] == {"unrecorded describers": 7}
    assert stage["settings"]["eval"]["every_steps"] == 2
    assert stage["weights"] == {"step": 3}
    assert str(tmp_path) not in json.dumps(record)

    rouge_l = {line["step"]: line["heldout"]["rouge_l"] for line in lines if "heldout" in line}
    best = max(rouge_l, key=lambda step: (rouge_l[step], step))
    assert result.best == {
        "model": str(tmp_path / "model_best"),
        "step": best,
        "score": pytest.approx(rouge_l[best], abs=1e-4),
    }
    [stage] = json.loads((tmp_path / "model_best" / "training.json").read_text())["stages"]
    assert stage["weights"] == {"step": best, "best_by": "rouge_l", "score": rouge_l[best]}
    assert stage["eval_scores"]["rouge_l"] == rouge_l[best]
    Captioner.from_pretrained(tmp_path / "model_best")
