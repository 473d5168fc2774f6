"""Device and dtype of models. No GPU here, so torch is made to report one."""

import os
import subprocess
import sys

import pytest
import torch
from support.paths import TESTS

from ureca.devices import choose_device, choose_dtype
from ureca.errors import ConfigError


def device_of_process_with_gpus() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return choose_device()


def test_choose_device_without_gpu_is_cpu():
    assert choose_device() == "cpu"


def test_choose_device_outside_ray_takes_gpu():
    assert device_of_process_with_gpus() == "cuda"


IN_RAY = """
import ray
from test_devices import device_of_process_with_gpus

if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    device = ray.remote(device_of_process_with_gpus)
    print(ray.get([device.options(num_gpus=number).remote() for number in (0, 0.5, 1)]))
"""


@pytest.mark.slow
def test_choose_device_in_ray_task_needs_assigned_gpu():
    paths = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", IN_RAY],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.splitlines()[-1] == "['cpu', 'cuda', 'cuda']"


@pytest.mark.parametrize(("setting", "found"), [("gpu0", "gpu0"), ("cuda:3", "cuda:3.*0 GPUs")])
def test_choose_device_unusable_setting_raises(setting, found):
    with pytest.raises(ConfigError, match=f"proposals.sam.device={found}"):
        choose_device(setting, name="proposals.sam.device")


def test_choose_dtype_follows_device():
    assert choose_dtype("auto", "cpu") == choose_dtype("float32", "cuda") == torch.float32
    assert choose_dtype("auto", "cuda:1") == choose_dtype("bfloat16", "cpu") == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype='int8'"):
        choose_dtype("int8", "cpu")
