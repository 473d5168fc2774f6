"""Model presets: `nano`, which is part of the package, and the HF-native InternVL checkpoints by hub name.

Sizes of InternVL2.5: URECA (arXiv 2504.05305) appendix A; repository names: the `-hf` conversions on the hub (`-HF` for
3.5), for 2.5 those of the preference-tuned (MPO) checkpoints. Architectures: `architectures.describe`. For a size that
the hub has only in the official layout, pass the folder that `jobs/convert_base.py` writes as `--base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ureca.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    base: str
    """Hub name or folder of the HF-native InternVL."""
    tile_limit: int
    """Maximum image tiles, thumbnail not counted. The paper trains and evaluates with 6."""
    tokens_per_tile: int
    """N, mask tokens per tile."""
    lora_rank: int


def packaged_weights(name: str) -> Path:
    """Return a folder of weights in this package."""
    return Path(str(files("ureca").joinpath("nano", "weights", name)))


def _internvl(base: str) -> Preset:
    return Preset(base=base, tile_limit=6, tokens_per_tile=16, lora_rank=128)


PRESETS: dict[str, Preset] = {
    "nano": Preset(base="nano", tile_limit=1, tokens_per_tile=8, lora_rank=32),
    **{
        f"internvl2.5-{size}": _internvl(f"OpenGVLab/InternVL2_5-{size.upper()}-MPO-hf")
        for size in ("1b", "2b", "4b", "8b", "26b", "38b", "78b")
    },
    **{
        f"internvl3-{size}": _internvl(f"OpenGVLab/InternVL3-{size.upper()}-hf")
        for size in ("1b", "2b", "8b", "14b", "38b", "78b")
    },
    **{
        f"internvl3.5-{size}": _internvl(f"OpenGVLab/InternVL3_5-{size.upper()}-HF")
        for size in ("1b", "2b", "4b", "8b", "14b", "38b")
    },
}


def preset(name: str) -> Preset:
    """Return the preset of that name. Raises ConfigError with the known names."""
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_path(base: str) -> str:
    """Return the folder or hub name to load `base` from; `nano` is part of the package."""
    return str(packaged_weights("base")) if base == "nano" else base
