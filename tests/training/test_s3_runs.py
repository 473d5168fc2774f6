"""Runs in S3 whose machines have no file system in common: two folders stand for the driver's disk and a worker's."""

from dataclasses import replace
from pathlib import Path

import pytest

from ureca.io import read_bytes, walk_files
from ureca.training import Stage1Config
from ureca.training.config import CheckpointConfig, WatchConfig
from ureca.training.metrics import FILE, MetricsWriter
from ureca.training.plan import Plan
from ureca.training.s3_runs import (
    put_inputs,
    put_look,
    put_metrics,
    put_model,
    put_results,
    take_inputs,
    take_results,
)
from ureca.training.table_index import TableIndex, open_index, prepare_index
from ureca.training.watch import Watch, choose_watched, look_directory


@pytest.fixture
def driver(region_table: Path, tiny_base: Path, s3_bucket: str, tmp_path: Path) -> Plan:
    config = Stage1Config(
        table=str(region_table),
        base=str(tiny_base),
        heldout=0.35,
        watch=WatchConfig(every_steps=2, images=2, regions_per_image=2, max_new_tokens=4, pictures=2),
        checkpoints=CheckpointConfig(storage=f"{s3_bucket}/{tmp_path.name}"),
    )
    return Plan.of(config, tmp_path / "driver")


def indexed(plan: Plan) -> TableIndex:
    return prepare_index(
        plan.table,
        Path(plan.directory),
        plan.processor(),
        heldout=plan.heldout,
        heldout_seed=plan.heldout_seed,
        has_begun=False,
    )


def files(folder: str | Path) -> dict[str, bytes]:
    return {file.below: read_bytes(file.path) for file in walk_files(folder)}


@pytest.mark.usefixtures("alone")
def test_looks_travel_as_metrics_and_model_do(driver: Plan, tmp_path: Path) -> None:
    index = indexed(driver)
    choose_watched(driver)
    put_inputs(driver)

    worker = replace(driver, directory=str(tmp_path / "worker"))
    take_inputs(worker)
    assert len(open_index(tmp_path / "worker")) == len(index)
    captioner = worker.captioner()
    look = Watch(worker, rank=0, num_workers=1).look(captioner, 2)
    put_look(worker, look.files)
    metrics = MetricsWriter(worker.directory, first_step=0)
    metrics.write(step=1, num_steps=1, loss=1.0)
    metrics.close()
    put_metrics(worker)
    captioner.save_pretrained(tmp_path / "worker" / "model")
    put_model(worker)

    take_results(driver, 1)
    for name in ("watch", "model"):
        assert files(tmp_path / "driver" / name) == files(tmp_path / "worker" / name)
    assert set(files(look_directory(driver.directory, 2))) == {"captions.jsonl", "image_00.jpg", "image_01.jpg"}
    assert (tmp_path / "driver" / FILE).read_bytes() == (tmp_path / "worker" / FILE).read_bytes()

    for file in ("model/training.json", "model_best/captioner_config.json", "training.png"):
        (tmp_path / "driver" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "driver" / file).write_text(file)
    put_results(driver, "training.png")
    there = files(driver.checkpoints.storage)
    assert there == files(tmp_path / "driver")


def test_a_machine_that_has_another_index_takes_the_driver_s(driver: Plan, tmp_path: Path) -> None:
    plain = replace(driver, watch=WatchConfig())
    indexed(plain)
    put_inputs(plain)
    worker = replace(plain, directory=str(tmp_path / "worker"))
    indexed(replace(worker, heldout=0.7))
    before = len(open_index(tmp_path / "worker"))
    take_inputs(worker)
    assert len(open_index(tmp_path / "worker")) == len(open_index(tmp_path / "driver")) > before


def test_a_run_with_local_checkpoints_puts_and_takes_nothing(driver: Plan, tmp_path: Path) -> None:
    plan = replace(driver, checkpoints=CheckpointConfig())
    put_inputs(plan)
    put_model(plan)
    put_results(plan, "training.png")
    take_inputs(plan)
    take_results(plan, 1)
    assert not (tmp_path / "driver").exists()
