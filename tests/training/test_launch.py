import errno
from typing import Any

import pytest
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from ureca.errors import ImageError, StorageError
from ureca.training.config import WorkersConfig
from ureca.training.deepspeed import TrainingError
from ureca.training.failures import StopOnUserErrors, find_user_error
from ureca.training.launch import computes_in_bfloat16, worker_environment


def test_error_for_the_user_is_found_in_what_ray_train_wraps_it_in() -> None:
    lost = ImageError("photo.jpg: not there. Copy it back.")
    hung_up = RuntimeError("connection closed by peer")
    assert find_user_error(WorkerGroupError("rank 1", {0: hung_up, 1: lost})) is lost
    assert find_user_error(WorkerGroupError("rank 1", {1: UserExceptionWithTraceback(lost, "…")})) is lost
    assert find_user_error(ControllerError(lost)) is lost


def test_a_fault_of_ours_stays_what_it_is() -> None:
    failed = WorkerGroupError("rank 0", {0: RuntimeError("shapes differ")})
    assert find_user_error(failed) is failed


def test_full_disk_of_ray_train_s_own_files_is_told_with_its_remedy() -> None:
    failed = ControllerError(OSError(errno.ENOSPC, "No space left on device"))
    received = find_user_error(failed)
    assert isinstance(received, StorageError)
    assert "the disk is full" in str(received)
    assert "Free some space and run the same command again; it resumes from the newest checkpoint" in str(received)


def test_what_would_come_again_ends_the_training_and_the_rest_is_tried_again() -> None:
    callback: Any = StopOnUserErrors()
    with pytest.raises(TrainingError, match="loss is nan"):
        callback.after_exception(None, {0: RuntimeError("hung up"), 1: TrainingError("the loss is nan")})
    callback.after_exception(None, {0: RuntimeError("killed"), 1: StorageError("S3 does not answer")})


def test_workers_get_their_threads_and_bounds() -> None:
    assert worker_environment(WorkersConfig(threads=3))["OMP_NUM_THREADS"] == "3"
    assert worker_environment(WorkersConfig())["OMP_NUM_THREADS"] == "1"
    assert int(worker_environment(WorkersConfig())["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024
    assert "DS_ACCELERATOR" not in worker_environment(WorkersConfig(use_gpu=True))


def test_cpus_that_compute_in_bfloat16_are_known_by_their_instructions() -> None:
    assert computes_in_bfloat16({"avx2": True, "amx_bf16": True, "avx512_bf16": True})
    assert not computes_in_bfloat16({"avx2": True, "amx_bf16": False, "avx512_f": True, "cpu_name": "Xeon"})
