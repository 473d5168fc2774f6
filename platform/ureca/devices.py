"""Choose device and dtype for every model that this package loads outside of DeepSpeed and vLLM.

Imports torch when called, so that configurations can import this module.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ureca.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16")


def choose_device(setting: str = "", *, name: str = "device") -> str:
    """Return the torch device for a model: `setting`, or if it is empty the GPU of this process, else "cpu".

    A Ray task or actor has a GPU only if it asked Ray for one. Since Ray 2.60 others see the machine's GPUs too, and
    without this rule all of them would load their models onto the first one.

    Args:
        setting: "", "cpu", "cuda" or "cuda:N".
        name: option that the setting comes from, for the error message.

    Raises:
        ConfigError: torch does not know the device, or has no such GPU.
    """
    import torch

    if not setting:
        return "cuda" if torch.cuda.is_available() and gpus_allowed() else "cpu"
    try:
        device = torch.device(setting)
    except RuntimeError as error:
        raise ConfigError(f"{name}={setting}: is no torch device; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{name}={setting}: torch finds {torch.cuda.device_count()} GPUs here; set {name}=cpu or see `ureca doctor`"
        )
    return setting


def check_dtype(setting: str, *, name: str = "dtype") -> None:
    """Raise ConfigError unless the dtype is one of `DTYPES`; `name` is the option that it comes from."""
    if setting not in DTYPES:
        raise ConfigError(f"{name}={setting!r}: use {', '.join(DTYPES)}")


def choose_dtype(setting: str, device: str, *, name: str = "dtype") -> torch.dtype:
    """Return the torch dtype of a model on `device`; "auto" is float32 on CPUs and bfloat16 on GPUs.

    Raises:
        ConfigError: `setting` is not one of `DTYPES`.
    """
    import torch

    check_dtype(setting, name=name)
    if setting == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, setting)
    return dtype


def gpus_allowed() -> bool:
    """Return False in a Ray worker to which Ray assigned no GPU, True in any other process."""
    ray = sys.modules.get("ray")  # a Ray worker has imported it
    if ray is None or not ray.is_initialized():
        return True
    from ray._private.worker import WORKER_MODE, global_worker

    if global_worker.mode != WORKER_MODE:
        return True
    return bool(ray.get_runtime_context().get_accelerator_ids()["GPU"])
