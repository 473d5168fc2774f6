"""How fast a training runs, and what keeps it from running faster: the throughput panel.

    regions_per_second, tokens_per_second   over all workers; tokens of prefixes and branches, without padding
    mfu                model FLOP/s over the devices' peak, 0..1 (PaLM, arXiv 2204.02311, appendix B): what the batches
                       need (`ureca.model.flops`), kept image tokens and padding not counted; nor, in stage 3, the
                       reference's forward pass
    padding_share      places in the batches that hold no token, over all of them: 0 as `pack` lays them end to end
    data_wait_share    seconds that workers waited for their batches, over all seconds

The peak is the maker's figure of a known GPU for the type computed in (`ureca.hardware`), or `eval.peak_tflops` as
given. Of a CPU, or another GPU, it is measured: all workers multiply matrices at once when training starts, so cores
that they share count once. A CPU's MFU is thus a share of what its matrix product reaches, not of a data sheet.
"""

import time

import torch
import torch.distributed

from ureca.hardware import find_accelerator
from ureca.model.captioner import Captioner
from ureca.model.flops import TrainedParts, total, training_flops
from ureca.model.packing import PackedBatch

WORK = ("flops", "sequence_tokens", "places")
"""Needed operations; tokens of prefixes and branches; places for them in the batch's tensors."""

_MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
_MEASURE_SECONDS = 0.3


class Throughput:
    """The panel of one worker. All workers must make theirs at once."""

    def __init__(self, captioner: Captioner, *, peak: float, device: torch.device) -> None:
        """`peak`: FLOP/s of this worker's device; the captioner's parts that train are switched on."""
        self._config, self._mask = captioner.base.config, captioner.config.mask
        self._learns = trained_parts_of(captioner)
        peaks = torch.tensor(peak, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(peaks)
        self._peak = float(peaks)

    def work_of(self, batch: PackedBatch) -> dict[str, float]:
        """What one batch holds, by the names in `WORK`; batches and workers add up."""
        parts = training_flops(self._config, self._mask, batch.counts, self._learns)
        places = batch.prefix_ids.numel() + batch.input_ids.numel()
        return {"flops": total(parts), "sequence_tokens": batch.counts.tokens, "places": float(places)}

    def figures(
        self,
        seconds: float,
        *,
        regions: float,
        flops: float,
        sequence_tokens: float,
        places: float,
        data_wait: float,
    ) -> dict[str, float]:
        """The panel of a step that took so many seconds.

        Args:
            regions, flops, sequence_tokens, places: of all workers together.
            data_wait: seconds, the mean over the workers.
        """
        return {
            "regions_per_second": round(regions / seconds, 2),
            "tokens_per_second": round(sequence_tokens / seconds, 1),
            "tflops_per_second": round(flops / seconds / 1e12, 6),
            "mfu": round(flops / seconds / self._peak, 5),
            "padding_share": round(1 - sequence_tokens / places, 4),
            "data_wait_share": round(min(1.0, data_wait / seconds), 4),
        }


def trained_parts_of(captioner: Captioner) -> TrainedParts:
    """What of a captioner trains."""
    in_encoder = any(parameter.requires_grad for parameter in captioner.mask_encoder.parameters())
    in_lora = any(parameter.requires_grad for parameter in captioner.base.parameters())
    return TrainedParts(mask_encoder=in_encoder, lora_rank=captioner.lora_rank if in_lora else 0)


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
