"""Throughput panel: how fast a training runs, and what limits it.

    regions_per_second, tokens_per_second   all workers; tokens of prefixes and branches, without padding
    mfu                model FLOP/s over the devices' peak, 0..1 (PaLM, arXiv 2204.02311, appendix B): the FLOPs the
                       batches need (`ureca.model.flops`), excluding cached image features, padding and, in stage 3,
                       the reference forward
    padding_share      share of token slots without a token: 0 because `pack` lays sequences end to end
    data_wait_share    share of the time that workers waited for batches

The peak is the vendor's figure for the GPU and dtype (`ureca.hardware`), or `eval.peak_tflops`. On CPUs and other GPUs
it is measured: all workers multiply matrices at the same time, so shared cores count once. A CPU's MFU is therefore
relative to its matrix product, not to a data sheet.
"""

import time

import torch
import torch.distributed

from ureca.hardware import find_accelerator
from ureca.model.captioner import Captioner
from ureca.model.flops import TrainedParts, total, training_flops
from ureca.model.packing import PackedBatch

WORK = ("flops", "sequence_tokens", "places")
"""FLOPs needed; tokens of prefixes and branches; token slots of the batch's tensors."""

_MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
_MEASURE_SECONDS = 0.3


class Throughput:
    """Throughput panel of one worker. All workers must create theirs at the same time."""

    def __init__(self, captioner: Captioner, *, peak: float, device: torch.device) -> None:
        """Take the captioner, trainable parts enabled, and the peak FLOP/s of this worker's device."""
        self._config, self._mask = captioner.base.config, captioner.config.mask
        self._learns = trained_parts_of(captioner)
        peaks = torch.tensor(peak, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(peaks)
        self._peak = float(peaks)

    def work_of(self, batch: PackedBatch) -> dict[str, float]:
        """Return the work of one batch by the names in `WORK`; it sums over batches and workers."""
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
        """Compute the panel of a step.

        Args:
            regions, flops, sequence_tokens, places: of all workers together.
            data_wait: seconds, mean over the workers.
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
    """Return which parts of a captioner train."""
    in_encoder = any(parameter.requires_grad for parameter in captioner.mask_encoder.parameters())
    in_lora = any(parameter.requires_grad for parameter in captioner.base.parameters())
    return TrainedParts(mask_encoder=in_encoder, lora_rank=captioner.lora_rank if in_lora else 0)


def peak_flops(device: torch.device, *, bf16: bool, given_tflops: float | None) -> float:
    """Return the peak FLOP/s of a worker's device in its compute dtype."""
    if given_tflops is not None:
        return given_tflops * 1e12
    known = find_accelerator(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    listed = None if known is None else known.bf16_flops if bf16 else known.fp32_flops
    return listed or measured_flops(device, torch.bfloat16 if bf16 else torch.float32)


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure FLOP/s of a square matrix product for a third of a second; call in all processes at once."""
    size = _MATMUL_SIZE[device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply()  # warm-up: compilation for the shape, first touch of the memory
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    started, times = time.monotonic(), 0
    while times == 0 or time.monotonic() - started < _MEASURE_SECONDS:
        multiply()
        times += 1
    return 2 * size**3 * times / (time.monotonic() - started)
