"""A stage's configuration with nothing left open: what a preset, or the model that training starts from, decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ureca.errors import CheckpointError, ConfigError
from ureca.io import is_folder
from ureca.model import CaptionerConfig, preset
from ureca.training.config import Stage1Config, Stage2Config, StageConfig

__all__ = ["base_of", "settled"]

T = TypeVar("T", bound=StageConfig)


def base_of(config: StageConfig) -> str:
    """Hub name or absolute folder of the base, as a trained model records it. Raises ConfigError: unknown preset."""
    chosen = preset(config.preset).base
    base = config.base or chosen
    return str(Path(base).resolve()) if base != chosen and Path(base).is_dir() else base


def settled(config: T) -> T:
    """`config` with base, tile limit, mask tokens a tile and LoRA's rank and alpha filled in where they are null.

    What it names stays as it is: a run's config.yaml shows it, and given to `--config` trains the same again.

    Raises:
        ConfigError: unknown preset; a tile limit below 1.
        CheckpointError: `init` holds no captioner, or was trained with another tile limit.
        StorageError: `init` is in S3, which refuses or does not answer.
    """
    chosen = preset(config.preset)
    if config.tile_limit is not None and config.tile_limit < 1:
        raise ConfigError(f"tile_limit={config.tile_limit}: the most tiles an image is cut into, 1 or more.")
    init = "" if isinstance(config, Stage1Config) else config.init
    # Of a folder that is not there yet nothing can be said: the plan refuses it.
    start = CaptionerConfig.load(init) if init and is_folder(init) else None
    tile_limit = config.tile_limit or (start.tile_limit if start else chosen.tile_limit)
    if start and tile_limit != start.tile_limit:
        raise CheckpointError(
            f"{init}: was trained with images of up to {start.tile_limit} tiles, this run asks for {tile_limit}. "
            f"Set --tile_limit={start.tile_limit} or leave it out, or train stage 1 again with "
            f"--tile_limit={tile_limit}."
        )
    filled: dict[str, Any] = {"base": config.base or chosen.base, "tile_limit": tile_limit}
    if isinstance(config, Stage1Config):
        tokens = config.mask.tokens_per_tile or chosen.tokens_per_tile
        filled["mask"] = replace(config.mask, tokens_per_tile=tokens)
    if isinstance(config, Stage2Config):
        rank = config.lora.rank or chosen.lora_rank
        filled["lora"] = replace(config.lora, rank=rank, alpha=config.lora.alpha or 2 * rank)
    return replace(config, **filled)
