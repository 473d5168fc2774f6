"""The captioner: an HF-native InternVL, untouched, and the mask encoder that stands beside it.

    image  ──> vision tower, projector ──> image tokens ┐
    masks  ──> mask encoder ───────────> mask tokens  ├─> language model ──> caption
    query  ──> tokenizer ──────────────> query tokens ┘

Nothing here imports ray, vllm or deepspeed.
"""

from ureca.torchvision_ops import declare_missing_operators

declare_missing_operators()  # before the first import of transformers' image processors

from transformers.utils.logging import disable_progress_bar  # noqa: E402

disable_progress_bar()  # a bar for every load would bury a job's own line of progress

from ureca.model.architectures import check_base, describe, parameter_counts, skeleton  # noqa: E402
from ureca.model.captioner import Captioner, CaptionerConfig  # noqa: E402
from ureca.model.export import export  # noqa: E402
from ureca.model.mask_encoder import MaskEncoder, MaskEncoderConfig  # noqa: E402
from ureca.model.packing import Example, PackedBatch, RegionExample, pack  # noqa: E402
from ureca.model.presets import PRESETS, Preset, preset, preset_path  # noqa: E402
from ureca.model.processor import CaptionerProcessor  # noqa: E402
from ureca.model.reference import as_reference, keep_reference  # noqa: E402

__all__ = [
    "PRESETS",
    "Captioner",
    "CaptionerConfig",
    "CaptionerProcessor",
    "Example",
    "MaskEncoder",
    "MaskEncoderConfig",
    "PackedBatch",
    "Preset",
    "RegionExample",
    "as_reference",
    "check_base",
    "describe",
    "export",
    "keep_reference",
    "pack",
    "parameter_counts",
    "preset",
    "preset_path",
    "skeleton",
]
