"""Settings of an evaluation, and the variants that follow from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ureca.devices import choose_device, choose_dtype
from ureca.evaluation.config import EvaluateConfig
from ureca.evaluation.predictions import Variant
from ureca.model.captioner import Captioner, CaptionerConfig
from ureca.model.internvl.presets import preset, preset_path
from ureca.model.processor import Cue

TRAINED_CUES: dict[str, Cue] = {
    "tuned_none": "none",
    "tuned_box": "box",
    "mask_stage1": "mask",
    "mask_stage2": "mask",
    "mask_stage3": "mask",
    "mask_longer": "mask",
    "shipped": "mask",
}
"""Variant -> region cue of its training; `shipped` is the captioner in the package."""


def variants_of(config: EvaluateConfig) -> list[Variant]:
    """Return the base's two variants, and those with a model directory.

    Raises:
        CheckpointError: a folder is not a model directory.
        ConfigError: an unknown preset.
    """
    trained = {
        "tuned_none": config.tuned_none,
        "tuned_box": config.tuned_box,
        "mask_stage1": config.stage1,
        "mask_stage2": config.stage2,
        "mask_stage3": config.stage3,
    }
    given = {name: folder for name, folder in trained.items() if folder}
    settings = [CaptionerConfig.load(Path(folder)) for folder in given.values()]
    known = preset(config.preset)
    base, tile_limit = (settings[0].base, settings[0].tile_limit) if settings else (known.base, known.tile_limit)
    device = choose_device(config.device)
    place: dict[str, Any] = {"device": device, "dtype": choose_dtype(config.dtype, device)}
    return [
        *base_variants(base, tile_limit, **place),
        *(trained_variant(name, folder, **place) for name, folder in given.items()),
    ]


def base_variants(base: str, tile_limit: int, **place: Any) -> list[Variant]:
    """Return variants of the untuned base, asked about the whole image and about a region's box.

    `place`: device and dtype, as `Captioner.from_base` takes them.
    """
    load = partial(Captioner.from_base, base, tile_limit=tile_limit, **place)
    model = preset_path(base)
    return [
        Variant(name="none", cue="image", model=model, load=load),
        Variant(name="box", cue="box_question", model=model, load=load),
    ]


def trained_variant(name: str, folder: str, *, seed: int = 0, **place: Any) -> Variant:
    """Return a model directory or export as the variant `name`, with the region cue of its training.

    `place`: device and dtype, as `Captioner.from_pretrained` takes them.
    """
    load = partial(Captioner.from_pretrained, folder, **place)
    return Variant(name=name, cue=TRAINED_CUES[name], model=folder, load=load, seed=seed)
