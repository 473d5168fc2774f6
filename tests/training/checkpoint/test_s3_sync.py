"""Runs in S3 whose machines have no file system in common: two folders stand for the driver's disk and a worker's."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trainings import select_images, storage_of

from ureca.errors import CheckpointError, ConfigError, StorageError
from ureca.model.captioner import Captioner, CaptionerConfig
from ureca.storage.files import copy_folder, list_folders, read_bytes, walk_files, write_bytes
from ureca.training.checkpoint.optimizer_state import report_checkpoint
from ureca.training.config import CheckpointConfig, EvalConfig, Stage1Config, Stage2Config
from ureca.training.data.table_index import TableIndex, open_index, prepare_index
from ureca.training.deepspeed import TrainingError
from ureca.training.failures import StopOnUserErrors
from ureca.training.monitor.inloop_eval import InLoopEvaluator, eval_directory
from ureca.training.monitor.metrics import FILE, MetricsWriter
from ureca.training.monitor.tail import WorkerLogReader, log_event
from ureca.training.plan import Plan, resolve_defaults


@pytest.fixture
def driver(region_table: Path, tiny_base: Path, s3_bucket: str, tmp_path: Path) -> Plan:
    config = Stage1Config(
        table=str(region_table),
        base=str(tiny_base),
        heldout=0.35,
        eval=EvalConfig(every_steps=2, images=2, regions_per_image=2, max_new_tokens=4, pictures=2),
        checkpoints=CheckpointConfig(storage=f"{s3_bucket}/{tmp_path.name}"),
    )
    return Plan.from_config(config, tmp_path / "driver")


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
    select_images(driver)
    storage_of(driver).push_inputs(init_copy=driver.init_copy, evaluates=driver.eval.every_steps > 0)

    worker = replace(driver, directory=str(tmp_path / "worker"))
    storage_of(worker).pull_inputs(init_copy=worker.init_copy, evaluates=worker.eval.every_steps > 0)
    assert len(open_index(tmp_path / "worker")) == len(index)
    captioner = worker.captioner()
    evaluator = InLoopEvaluator(worker.directory, worker.eval, cue="mask", in_lockstep=False, rank=0, num_workers=1)
    found = evaluator.evaluate(captioner, 2)
    storage_of(worker).push_files(found.files)
    metrics = MetricsWriter(worker.directory, first_step=0)
    metrics.write(step=1, num_steps=1, loss=1.0)
    metrics.close()
    storage_of(worker).push_metrics()
    captioner.save_pretrained(tmp_path / "worker" / "model")
    storage_of(worker).push_model()

    storage_of(driver).pull_results(1, evaluates=driver.eval.every_steps > 0)
    for name in ("eval", "model"):
        assert files(tmp_path / "driver" / name) == files(tmp_path / "worker" / name)
    assert set(files(eval_directory(driver.directory, 2))) == {"captions.jsonl", "image_00.jpg", "image_01.jpg"}
    assert (tmp_path / "driver" / FILE).read_bytes() == (tmp_path / "worker" / FILE).read_bytes()

    for file in ("model/training.json", "model_best/captioner_config.json", "training.png"):
        (tmp_path / "driver" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "driver" / file).write_text(file)
    storage_of(driver).push_results("training.png")
    there = files(driver.checkpoints.storage)
    assert there == files(tmp_path / "driver")


def test_a_machine_that_has_another_index_takes_the_driver_s(driver: Plan, tmp_path: Path) -> None:
    plain = replace(driver, eval=EvalConfig())
    indexed(plain)
    storage_of(plain).push_inputs(init_copy=plain.init_copy, evaluates=plain.eval.every_steps > 0)
    worker = replace(plain, directory=str(tmp_path / "worker"))
    indexed(replace(worker, heldout=0.7))
    before = len(open_index(tmp_path / "worker"))
    storage_of(worker).pull_inputs(init_copy=worker.init_copy, evaluates=worker.eval.every_steps > 0)
    assert len(open_index(tmp_path / "worker")) == len(open_index(tmp_path / "driver")) > before


def test_a_run_with_local_checkpoints_puts_and_takes_nothing(driver: Plan, tmp_path: Path) -> None:
    plan = replace(driver, checkpoints=CheckpointConfig())
    storage_of(plan).push_inputs(init_copy=plan.init_copy, evaluates=plan.eval.every_steps > 0)
    storage_of(plan).push_model()
    storage_of(plan).push_results("training.png")
    storage_of(plan).pull_inputs(init_copy=plan.init_copy, evaluates=plan.eval.every_steps > 0)
    storage_of(plan).pull_results(1, evaluates=plan.eval.every_steps > 0)
    assert not (tmp_path / "driver").exists()


@pytest.fixture(scope="module")
def stage1_model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1") / "model"
    Plan.from_config(Stage1Config(table="t", base=str(tiny_base)), folder.parent).captioner().save_pretrained(folder)
    return folder


def mask_encoder(captioner: Captioner) -> dict[str, torch.Tensor]:
    return captioner.mask_encoder.state_dict()


@pytest.mark.parametrize("place", ["the driver's disk", "s3"])
def test_the_model_to_start_from_travels_to_machines_that_do_not_see_it(
    place: str, stage1_model: Path, region_table: Path, tiny_base: Path, s3_bucket: str, tmp_path: Path
) -> None:
    expected = mask_encoder(Captioner.from_pretrained(stage1_model))
    here = str(tmp_path / "model") if place != "s3" else f"{s3_bucket}/{tmp_path.name}_model"
    copy_folder(stage1_model, here)
    config = resolve_defaults(
        Stage2Config(
            table=str(region_table),
            base=str(tiny_base),
            init=f"{here}/",
            checkpoints=CheckpointConfig(storage=f"{s3_bucket}/{tmp_path.name}"),
        )
    )
    assert config.tile_limit == CaptionerConfig.load(stage1_model).tile_limit
    driver = Plan.from_config(config, tmp_path / "driver")
    assert driver.init == here
    indexed(driver)
    storage_of(driver).push_inputs(init_copy=driver.init_copy, evaluates=driver.eval.every_steps > 0)
    if place != "s3":
        shutil.rmtree(here)
    shutil.move(tmp_path / "driver", tmp_path / "gone")

    worker = replace(driver, directory=str(tmp_path / "worker"))
    storage_of(worker).pull_inputs(init_copy=worker.init_copy, evaluates=worker.eval.every_steps > 0)
    storage_of(worker).pull_inputs(
        init_copy=worker.init_copy, evaluates=worker.eval.every_steps > 0
    )  # a machine's second worker
    captioner = worker.captioner()
    for name, weight in mask_encoder(captioner).items():
        assert torch.equal(weight, expected[name]), name
    assert worker.mask_shape() == (captioner.config.mask.tokens_per_tile, True)
    assert files(tmp_path / "worker") == files(tmp_path / "gone")


def test_a_model_in_s3_is_fetched_into_the_run_and_another_content_is_fetched_beside_it(
    stage1_model: Path, tiny_base: Path, s3_bucket: str, tmp_path: Path
) -> None:
    there = f"{s3_bucket}/{tmp_path.name}_model"
    copy_folder(stage1_model, there)
    config = Stage2Config(table="t", base=str(tiny_base), init=there)
    first = Plan.from_config(config, tmp_path / "run")
    assert files(first.init_directory) == files(stage1_model)
    again = Plan.from_config(config, tmp_path / "run")
    assert again == first
    write_bytes(f"{there}/README.md", b"changed")
    other = Plan.from_config(config, tmp_path / "run")
    assert files(other.init_directory) == {**files(stage1_model), "README.md": b"changed"}
    assert other.identity() == first.identity()
    assert len(list_folders(tmp_path / "run")) == 2
    for damaged, message in ((there, "mask_encoder.safetensors: can't be read"), (f"{there}_none", "captioner")):
        if damaged == there:
            write_bytes(f"{there}/mask_encoder.safetensors", b"cut off")
        with pytest.raises(CheckpointError, match=message):
            Plan.from_config(replace(config, init=damaged), tmp_path / "refused")


def test_a_base_in_s3_is_refused() -> None:
    with pytest.raises(ConfigError, match="base=s3://bucket/base"):
        Stage1Config(table="t", base="s3://bucket/base")


def test_notes_travel_to_the_driver_and_to_the_next_first_worker(driver: Plan, tmp_path: Path) -> None:
    workers = [replace(driver, directory=str(tmp_path / f"worker{number}")) for number in range(2)]
    received = WorkerLogReader(driver.directory)
    for number, worker in enumerate(workers):
        Path(worker.directory).mkdir()
        storage_of(worker).pull_log()
        log_event(worker.directory, f"start {number}")
        storage_of(worker).push_log()
    storage_of(driver).pull_log()
    assert received.new() == ["start 0", "start 1"]
    log_event(driver.directory, "logged by this machine")
    storage_of(driver).pull_log()  # which has more than S3
    assert received.new() == ["logged by this machine"]
    plain = replace(driver, checkpoints=CheckpointConfig(), directory=str(tmp_path / "plain"))
    storage_of(plain).push_log()
    storage_of(plain).pull_log()
    assert not (tmp_path / "plain").exists()


class _Trained:
    """An engine of which nothing trains."""

    module = torch.nn.Module()


@pytest.mark.usefixtures("alone")
def test_s3_that_does_not_answer_while_saving_is_tried_again_and_a_full_disk_is_not(
    driver: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A StorageError is left to Ray Train, which resumes from the newest checkpoint."""
    silent = replace(driver, checkpoints=CheckpointConfig(storage=f"{driver.checkpoints.storage}/silent"))
    monkeypatch.setattr(
        "ureca.storage.files._s3", lambda _: (_ for _ in ()).throw(OSError("AWS Error NETWORK_CONNECTION"))
    )
    with pytest.raises(StorageError, match="silent/checkpoints/.*S3") as raised:
        report_checkpoint(storage_of(silent), _Trained(), silent.checkpoint_record("0" * 64), step=8)
    run_context: Any = None
    StopOnUserErrors().after_exception(run_context, {0: raised.value})

    def full(descriptor: int) -> None:  # noqa: ARG001
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    local = replace(driver, checkpoints=CheckpointConfig())
    with pytest.raises(TrainingError, match="checkpoint") as ended:
        report_checkpoint(storage_of(local), _Trained(), local.checkpoint_record("0" * 64), step=8)
    with pytest.raises(TrainingError):
        StopOnUserErrors().after_exception(run_context, {0: ended.value})
