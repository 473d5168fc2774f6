"""How fast a training runs, and what keeps it from running faster: the throughput panel.

    regions_per_second, tokens_per_second   over all workers; tokens of prefixes and branches, without padding
    mfu                model FLOP/s over the devices' peak, 0..1 (PaLM, arXiv 2204.02311, appendix B): what the batch
                       needs (`ureca.model.costs`), kept image tokens and padding not counted
    padding_share      positions that hold no token, over all positions: 0 as `pack` lays them end to end
    data_wait_share    seconds that workers waited for their batches, over all seconds

The peak is the maker's figure of a known GPU for the type computed in (`ureca.accelerators`), or `watch.peak_tflops` as
given. Of a CPU, or another GPU, it is measured: all workers multiply matrices at once when training starts, so cores
that they share count once. A CPU's MFU is thus a share of what its matrix product reaches, not of a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from ureca.accelerators import find_accelerator
from ureca.model import Captioner, PackedBatch
from ureca.model.costs import Counts, Learns, total, training_flops

__all__ = ["Positions", "Throughput", "measured_flops", "peak_flops", "positions_of"]

_MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
_MEASURE_SECONDS = 0.3


@dataclass(frozen=True)
class Positions:
    """Places in the language model's sequences."""

    filled: int
    all: int


class Throughput:
    """The panel of one worker; every worker must call its methods alike."""

    def __init__(self, captioner: Captioner, *, learns: Learns, peak: float, device: torch.device) -> None:
        """`peak`: FLOP/s of this worker's device."""
        self._config, self._mask = captioner.base.config, captioner.config.mask
        self._learns, self._device = learns, device
        self._peak = _summed([peak], device)[0]
        self._work, self._positions = Counts(), Positions(0, 0)

    def saw(self, batch: PackedBatch) -> None:
        """One of this worker's batches of a step; best while it is on the CPU still."""
        more = positions_of(batch)
        self._work += batch.counts
        self._positions = Positions(self._positions.filled + more.filled, self._positions.all + more.all)

    def figures(self, *, seconds: float, regions: int, data_wait: float) -> dict[str, float]:
        """The panel of the step that ends here, and a fresh start for the next.

        `seconds`: that the step took; `regions`: over all workers; `data_wait`: this worker's seconds.
        """
        flops = total(training_flops(self._config, self._mask, self._work, self._learns))
        filled, everywhere = self._positions.filled, self._positions.all
        flops, filled, everywhere, waited, spent = _summed(
            [flops, filled, everywhere, data_wait, seconds], self._device
        )
        self._work, self._positions = Counts(), Positions(0, 0)
        return {
            "step_seconds": round(seconds, 4),
            "regions_per_second": round(regions / seconds, 2),
            "tokens_per_second": round(filled / seconds, 1),
            "tflops_per_second": round(flops / seconds / 1e12, 4),
            "mfu": round(flops / seconds / self._peak, 4),
            "padding_share": round(1 - filled / everywhere, 4),
            "data_wait_share": round(waited / spent, 4),
        }


def positions_of(batch: PackedBatch) -> Positions:
    """Places that a batch takes in the language model, and how many of them hold a token."""
    return Positions(int(batch.counts.tokens), batch.prefix_ids.numel() + batch.input_ids.numel())


def peak_flops(device: torch.device, *, bf16: bool, given_tflops: float | None) -> float:
    """FLOP/s that a worker's device can reach at most, in the type that it computes in."""
    if given_tflops is not None:
        return given_tflops * 1e12
    known = find_accelerator(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    listed = None if known is None else known.bf16_flops if bf16 else known.fp32_flops
    return listed or measured_flops(device, torch.bfloat16 if bf16 else torch.float32)


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, over a third of a second; of several processes, call it in all at once."""
    size = _MATMUL_SIZE[device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply()  # warm-up: code that is compiled for the shape, memory that is touched
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    started, times = time.monotonic(), 0
    while times == 0 or time.monotonic() - started < _MEASURE_SECONDS:
        multiply()
        times += 1
    return 2 * size**3 * times / (time.monotonic() - started)


def _summed(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all workers."""
    sums: Tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return [float(value) for value in sums]
