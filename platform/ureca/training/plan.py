"""Plan of a training run: a stage's configuration with all defaults resolved, checked before any process starts.

The driver makes the plan (`Plan.from_config`), workers receive it as plain values, and every checkpoint records its
`identity`, so that resuming with settings that would silently change the run is refused.
"""

import hashlib
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from ureca.config import config_to_dict, flatten
from ureca.errors import CheckpointError, ConfigError
from ureca.model.captioner import CONFIG_FILE, MASK_ENCODER_FILE, Captioner, CaptionerConfig
from ureca.model.internvl.architectures import check_base, read_config
from ureca.model.internvl.presets import preset, preset_path
from ureca.model.internvl.weights import open_weights, weight_files
from ureca.model.processor import CaptionerProcessor
from ureca.model.reference import keep_reference
from ureca.storage.files import absolute, copy_folder, file_bytes, is_folder, walk_files
from ureca.training.config import (
    BatchConfig,
    CheckpointConfig,
    Cue,
    EvalConfig,
    LoraConfig,
    MaskConfig,
    OptimizerConfig,
    PreferenceConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    StageConfig,
    WorkersConfig,
)
from ureca.training.data.loader import LoaderSettings

T = TypeVar("T", bound=StageConfig)

_STAGES: dict[type, Literal[1, 2, 3]] = {Stage1Config: 1, Stage2Config: 2, Stage3Config: 3}

# Settings that may differ when a run resumes. They affect the weights only through the order of floating-point sums and
# through LoRA dropout (checkpoint/optimizer_state.py logs that case).
_MAY_CHANGE = (
    "directory",
    "checkpoints",
    "init_copy",
    "eval",
    "workers.num_workers",
    "workers.use_gpu",
    "workers.zero_stage",
    "workers.offload_optimizer",
    "workers.offload_weights",
    "workers.threads",
    "workers.image_cache_mb",
    "workers.activation_checkpointing",
    "workers.max_failures",
    "batch.tokens_per_device",
    "batch.prefetch_steps",
    "batch.prefetch_threads",
)


def resolve_base(config: StageConfig) -> str:
    """Return the hub name or absolute path of the base, as a model directory records it.

    Raises:
        ConfigError: unknown preset.
    """
    chosen = preset(config.preset).base
    base = config.base or chosen
    return str(Path(base).resolve()) if base != chosen and Path(base).is_dir() else base


def resolve_defaults(config: T) -> T:
    """Fill in base, tile limit, mask tokens per tile, LoRA rank and alpha where they are null.

    A run's config.yaml is the result; passed to `--config` it reproduces the run.

    Raises:
        ConfigError: unknown preset; a tile limit below 1.
        CheckpointError: `init` holds no captioner, or was trained with another tile limit.
        StorageError: `init` is in S3, which refuses or does not answer.
    """
    chosen = preset(config.preset)
    if config.tile_limit is not None and config.tile_limit < 1:
        raise ConfigError(f"tile_limit={config.tile_limit}: must be at least 1.")
    init = "" if isinstance(config, Stage1Config) else config.init
    # A missing folder is refused by Plan.from_config.
    start = CaptionerConfig.load(init) if init and is_folder(init) else None
    tile_limit = config.tile_limit or (start.tile_limit if start else chosen.tile_limit)
    if start and tile_limit != start.tile_limit:
        raise CheckpointError(
            f"{init}: was trained with up to {start.tile_limit} tiles per image, but this run asks for {tile_limit}. "
            f"Set --tile_limit={start.tile_limit} or omit it, or repeat stage 1 with "
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of one training run, as workers receive them.

    Paths are absolute because workers have another working folder.
    """

    stage: Literal[1, 2, 3]
    directory: str
    """Folder of the run, on driver and workers."""
    table: str
    """Path of the region table."""
    heldout: float
    heldout_seed: int
    init: str
    """Model directory to start from, local or in S3; empty: the base."""
    init_copy: str = ""
    """Name of the copy of `init` below `directory`, derived from its content. Used when `init` or the checkpoints are
    in S3. Empty: `init` is read in place."""
    preset: str
    base: str
    """Folder or hub name of the base."""
    tile_limit: int
    """Maximum tiles per image, thumbnail not counted."""
    mask: MaskConfig | None
    """Mask encoder to create. None: that of `init`, or the default if the cue is not a mask."""
    batch: BatchConfig
    optimizer: OptimizerConfig
    workers: WorkersConfig
    checkpoints: CheckpointConfig
    eval: EvalConfig
    seed: int
    cue: Cue
    tune_mask_encoder: bool
    lora: LoraConfig | None
    """LoRA adapter to create. None in stages 1 and 3; stage 3 continues with the adapter in `init`."""
    preference: PreferenceConfig | None = None
    """Objective of stage 3; None trains on captions only."""

    @classmethod
    def from_config(cls, config: StageConfig, directory: Path) -> "Plan":
        """Resolve and check a stage's configuration.

        Raises:
            ConfigError: unknown preset.
            CheckpointError: the base is not an HF-native InternVL, lacks weights or has no LoRA targets; `init` is not
                a model directory of the previous stage, or was trained on another base or with other mask tokens.
            StorageError: `init` is in S3, which refuses or does not answer.
        """
        config = resolve_defaults(config)
        assert config.tile_limit is not None
        stage = _STAGES[type(config)]
        second = config if isinstance(config, Stage2Config) else None
        cue = second.cue if second else "mask"
        init = "" if isinstance(config, Stage1Config) else config.init
        if init:
            init = absolute(init) if "://" in init else str(Path(init).resolve())
        base = resolve_base(config)
        check_base(base)
        _check_files(base, config.tile_limit)
        checkpoints, init_copy = _absolute_storage(config.checkpoints), ""
        if init:
            tokens = None if isinstance(config, Stage1Config) else config.tokens_per_tile
            _check_init(init, base, stage, tokens)
            if "://" in init or "://" in checkpoints.storage:
                init_copy = _copy_init(init, directory.resolve())
            with open_weights((directory.resolve() / init_copy if init_copy else Path(init)) / MASK_ENCODER_FILE):
                pass
        return cls(
            stage=stage,
            directory=str(directory.resolve()),
            table=config.table if "://" in config.table else str(Path(config.table).resolve()),
            heldout=config.heldout,
            heldout_seed=config.heldout_seed,
            init=init,
            init_copy=init_copy,
            preset=config.preset,
            base=base,
            tile_limit=config.tile_limit or preset(config.preset).tile_limit,
            mask=config.mask if isinstance(config, Stage1Config) else None,
            batch=config.batch,
            optimizer=config.optimizer,
            workers=config.workers,
            checkpoints=checkpoints,
            eval=config.eval,
            seed=config.seed,
            cue=cue,
            tune_mask_encoder=not isinstance(config, Stage1Config) and config.tune_mask_encoder and cue == "mask",
            lora=second.lora if second else None,
            preference=config.preference if isinstance(config, Stage3Config) else None,
        )

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share, flat: `{"batch.images_per_step": 8, …}`."""
        flat = flatten(config_to_dict(self))
        return {key: value for key, value in flat.items() if not _may_change(key)}

    def loader_settings(self) -> LoaderSettings:
        """Return the settings that decide the run's batches."""
        tokens_per_tile, only_touched_tiles = self.mask_shape()
        workers = self.workers
        return LoaderSettings(
            table=self.table,
            batch=self.batch,
            epochs=self.optimizer.epochs,
            seed=self.seed,
            cue=self.cue,
            tokens_per_tile=tokens_per_tile,
            only_touched_tiles=only_touched_tiles,
            rejected_per_region=self.preference.rejected_per_region if self.preference else None,
            # Under ZeRO 3 all workers must run the vision tower together.
            image_cache_bytes=workers.image_cache_mb * 2**20 if workers.zero_stage < 3 else 0,
        )

    def checkpoint_record(self, base_hash: str) -> dict[str, Any]:
        """Return what every checkpoint of this run records: seed, score, base, workers, and `identity` as "plan"."""
        offloaded = self.workers.offload_optimizer or self.workers.offload_weights
        return {
            "seed": self.seed,
            "scored_by": self.eval.score,
            "base_hash": base_hash,
            "workers": {
                "num_workers": self.workers.num_workers,
                "sharing": f"ZeRO {self.workers.zero_stage}{', offloaded' if offloaded else ''}",
                "use_gpu": self.workers.use_gpu,
                "tokens_per_device": self.batch.tokens_per_device,
            },
            "plan": self.identity(),
        }

    @property
    def init_directory(self) -> str:
        """Path of `init` on this machine."""
        return f"{self.directory}/{self.init_copy}" if self.init_copy else self.init

    def processor(self) -> CaptionerProcessor:
        """Load the processor of the initial model, without the model.

        Raises:
            CheckpointError: the base or model directory has no processor.
        """
        if self.init:
            return CaptionerProcessor.from_pretrained(self.init_directory, tile_limit=self.tile_limit)
        return CaptionerProcessor.from_pretrained(preset_path(self.base), tile_limit=self.tile_limit)

    def mask_shape(self) -> tuple[int, bool]:
        """Return the mask tokens per tile, and whether only tiles that a region touches are encoded."""
        if self.init:
            mask = CaptionerConfig.load(self.init_directory).mask
            return mask.tokens_per_tile, mask.kind == "tokens"
        config = self.mask or MaskConfig()
        return config.tokens_per_tile or preset(self.preset).tokens_per_tile, config.kind == "tokens"

    def captioner(self) -> Captioner:
        """Build the initial model with its trainable parts enabled (float32, on the CPU).

        Raises:
            CheckpointError: the base or model directory can't be loaded, or they do not match.
        """
        chosen = preset(self.preset)
        if self.init:
            captioner = Captioner.from_pretrained(self.init_directory)
        else:
            mask = self.mask or MaskConfig()
            captioner = Captioner.from_base(
                self.base,
                tile_limit=self.tile_limit,
                tokens_per_tile=mask.tokens_per_tile or chosen.tokens_per_tile,
                kind=mask.kind,
                projection=mask.projection,
                input_scale=mask.input_scale,
                location_codes=mask.location_codes,
                seed=self.seed,
            )
        if self.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                captioner.add_lora(
                    rank=self.lora.rank or chosen.lora_rank,
                    alpha=self.lora.alpha,
                    dropout=self.lora.dropout,
                )
        captioner.trainable(self.stage, tune_mask_encoder=self.tune_mask_encoder)
        if self.preference is not None:
            keep_reference(captioner)
        if self.workers.activation_checkpointing:
            captioner.checkpoint_activations()
        return captioner


def _may_change(key: str) -> bool:
    """Return whether `key` is one of `_MAY_CHANGE` or a setting below one of these sections."""
    return any(key == name or key.startswith(f"{name}.") for name in _MAY_CHANGE)


def _copy_init(init: str, directory: Path) -> str:
    """Copy a model directory into the run's folder; return the copy's name, a digest of its content."""
    partial = directory / f".init.{uuid.uuid4().hex}.partial"
    try:
        copy_folder(init, partial)
        digest = hashlib.sha256()
        for file in sorted(walk_files(partial)):
            with open(file.path, "rb") as content:
                digest.update(f"{file.below} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        name = f"init_{digest.hexdigest()[:12]}"
        if not (directory / name / CONFIG_FILE).is_file():
            shutil.rmtree(directory / name, ignore_errors=True)
            os.replace(partial, directory / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return name


def _absolute_storage(checkpoints: CheckpointConfig) -> CheckpointConfig:
    return replace(checkpoints, storage=absolute(checkpoints.storage)) if checkpoints.storage else checkpoints


def _check_files(base: str, tile_limit: int) -> None:
    """Check the files of a local base; workers check a hub's.

    Raises:
        CheckpointError: a weight file is missing or truncated; tied embeddings have two matrices; processor, tokenizer
            and configuration do not match.
    """
    folder = Path(preset_path(base))
    if not folder.is_dir():
        return
    files = weight_files(folder)
    for path in set(files.values()):
        with open_weights(path):
            pass
    config = read_config(base)
    if config.tie_word_embeddings and (head := next((name for name in files if name.endswith("lm_head.weight")), None)):
        raise CheckpointError(
            f"{base}: config.json has tie_word_embeddings=true, but its weights hold {head} too, which loading would "
            "drop; set it to false if the checkpoint was trained with two matrices, or remove that weight"
        )
    CaptionerProcessor.from_pretrained(str(folder), tile_limit=tile_limit).check_against(config, base)


def _check_init(init: str, base: str, stage: int, tokens_per_tile: int | None) -> None:
    """Check everything but the weights of `init`, which may be in S3."""
    config = CaptionerConfig.load(init)
    if config.base != base:
        raise CheckpointError(
            f"{init}: was trained on base {config.base}, but this run uses {base}. "
            "Set --preset or --base to the base of `init`, or run stage 1 on this run's base."
        )
    if tokens_per_tile not in (None, config.mask.tokens_per_tile):
        raise CheckpointError(
            f"{init}: was trained with {config.mask.tokens_per_tile} mask tokens per tile, but this run asks for "
            f"{tokens_per_tile}. Set --tokens_per_tile={config.mask.tokens_per_tile} or omit it, or repeat stage 1 "
            f"with --mask.tokens_per_tile={tokens_per_tile}."
        )
    has_adapter, exported = is_folder(f"{init}/adapter"), file_bytes(f"{init}/config.json") is not None
    if stage == 2 and (has_adapter or exported):
        raise CheckpointError(
            f"{init}: is a model of stage 2 already. Set --init to a model directory of stage 1, written by "
            "train_stage1."
        )
    if stage == 3 and not has_adapter:
        found = "is an export (its adapter is merged)" if exported else "has no LoRA adapter (a model of stage 1)"
        raise CheckpointError(
            f"{init}: {found}; stage 3 continues with stage 2's adapter. "
            "Set --init to a model directory of stage 2, written by train_stage2."
        )
