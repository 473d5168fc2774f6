"""Estimate memory and time of a training stage on given machines, and changes that make it fit.

Memory comes from `ureca.training.sizing.memory`, FLOPs from `ureca.model.flops`; nothing is loaded or measured. The
constants below are assumptions about quantities that only a run can measure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ureca.errors import ConfigError
from ureca.storage.files import file_bytes, read_json

if TYPE_CHECKING:
    from transformers import InternVLConfig

    from ureca.model.flops import Counts
    from ureca.model.mask_encoder import MaskEncoderConfig
    from ureca.training.config import MaskConfig, Stage1Config, StageConfig
    from ureca.training.sizing.memory import Memory, Setting, Sizes


HEADROOM = 0.11
"""Share of GPU memory to leave free. The formula underestimates torch's peak by up to 10.2% (by more than 5% in two of
the 26 peaks that benchmarks/memory.py measured, both with many tiles), and allocations leave gaps."""
MFU = 0.35
"""Default share of the peak FLOP/s that training reaches. An assumption; no GPU was measured here."""
CPU_FLOPS = 2e10
"""Peak FLOP/s of one single-threaded CPU process: roughly what nano's training reaches on a core with AMX."""
QUERY_TOKENS, CAPTION_TOKENS = 24, 32
"""Tokens per region, markup included, when no table gives caption lengths."""
REGIONS_PER_IMAGE = 16
TOUCHED_TILES = 3
"""Tiles that a region touches, thumbnail included: those that encoder `tokens` keeps."""
Stage = Literal[1, 2, 3]


@dataclass(frozen=True, kw_only=True)
class Data:
    """The training data."""

    regions: int | None
    regions_per_image: float
    caption_tokens: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machines to train on."""

    name: str
    num: int
    memory_bytes: float
    flops: float
    """Peak FLOP/s of one device in the compute dtype."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Estimate of one stage."""

    stage: int
    fits: bool
    bytes: float
    memory: Memory
    host_bytes: float
    """Host memory of one machine for all its workers, at their start."""
    mask_source: str
    """Source of the mask encoder's kind and size; empty in stage 1, which creates the encoder."""
    hours: float | None
    settings: dict[str, Any]
    changes: list[dict[str, Any]]
    """Changes that would make the stage fit, each alone and combined with those before it."""


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A stage with settings that can be varied one by one."""

    stage: Stage
    name: str
    base: InternVLConfig
    mask: MaskEncoderConfig
    sizes: Sizes
    setting: Setting
    tokens: int
    """Maximum tokens of a microbatch."""
    tiles: int
    data: Data
    branches_per_region: float
    in_portions: bool
    """Regions of an image come in chunks (`regions_per_visit`)."""
    mask_source: str

    def needs(self) -> Memory:
        from ureca.training.sizing.memory import peak_memory

        return peak_memory(self.sizes, self.counts(), self.setting)

    def bytes(self) -> float:
        from ureca.training.sizing.memory import CONTEXT_BYTES

        context = CONTEXT_BYTES if self.setting.gpu else 0
        return context + max(self.needs().total, self.start_bytes())

    def start_bytes(self) -> float:
        """Under ZeRO 3 DeepSpeed moves all weights to the GPU before it partitions them."""
        if self.setting.zero_stage < 3:
            return 0.0
        return float(self.setting.frozen_element * self.sizes.parameters)

    def _parts(self) -> tuple[int, Any]:
        from ureca.model.flops import branch_of, prefix_tokens

        touched = min(self.tiles, TOUCHED_TILES) if self.mask.kind == "tokens" else self.tiles
        branch = branch_of(
            mask_tiles=touched,
            tokens_per_tile=self.mask.tokens_per_tile,
            query=QUERY_TOKENS,
            caption=round(self.data.caption_tokens),
        )
        return prefix_tokens(self.base, self.tiles), branch

    def min_tokens(self) -> int:
        """Tokens of one image with one region."""
        prefix, branch = self._parts()
        return math.ceil(prefix + branch.tokens * self.branches_per_region)

    def counts(self) -> Counts:
        """Counts of a full microbatch: as many typical images as fit, or part of one image.

        If typical images do not fill it, images with more regions do, except when regions come in chunks.
        """
        from ureca.model.flops import Counts, packed_counts

        prefix, branch = self._parts()
        usual = max(1, round(self.data.regions_per_image * self.branches_per_region))
        images = max(1, self.tokens // (prefix + usual * branch.tokens))
        total = int((self.tokens - images * prefix) // branch.tokens)
        if self.in_portions:
            total = min(total, images * usual)
        total = max(total, images)
        counts = Counts()
        for number in range(images):
            counts += packed_counts(self.tiles, prefix, [branch] * (total // images + (number < total % images)))
        return counts

    def flops_per_region(self) -> float:
        """FLOPs per region, with its share of the image and recomputation."""
        from ureca.model.flops import TrainedParts, packed_counts, total, training_flops

        prefix, branch = self._parts()
        regions = max(1, round(self.data.regions_per_image))
        branches = max(1, round(regions * self.branches_per_region))
        image = packed_counts(self.tiles, prefix, [branch] * branches)
        learns = TrainedParts(mask_encoder=self.sizes.mask is not None, lora_rank=self.sizes.lora_rank)
        parts = training_flops(self.base, self.mask, image, learns, recompute=self.setting.checkpointing)
        operations = total(parts)
        if self.stage == 3:  # the reference model, forward only
            operations += sum(part.forward for name, part in parts.items() if name != "vision")
        return operations / regions


class _Start(NamedTuple):
    """Settings that a later stage inherits from the previous one."""

    mask: MaskConfig
    tile_limit: int | None
    lora_rank: int | None
    """LoRA rank of stage 3's adapter; None if unknown."""
    source: str


def _start(config: StageConfig, stage1: Stage1Config | None, stage1_source: str) -> _Start:
    """Take settings from `init` if it exists and has this base, else from stage 1's settings, else defaults."""
    from ureca.model.captioner import CaptionerConfig
    from ureca.training.config import MaskConfig, Stage1Config
    from ureca.training.plan import resolve_base

    if isinstance(config, Stage1Config):
        return _Start(config.mask, config.tile_limit, None, "")
    if stage1 is not None:
        mask = replace(stage1.mask, tokens_per_tile=config.tokens_per_tile or stage1.mask.tokens_per_tile)
        known = _Start(mask, config.tile_limit or stage1.tile_limit, None, stage1_source)
    else:
        known = _Start(
            MaskConfig(tokens_per_tile=config.tokens_per_tile),
            config.tile_limit,
            None,
            "assumed: set --init or --mask.kind",
        )
    if not config.init or file_bytes(f"{config.init}/captioner_config.json") is None:
        return known
    found = CaptionerConfig.load(config.init)
    if found.base != resolve_base(config):
        return known
    adapter = f"{config.init}/adapter/adapter_config.json"
    rank = int(read_json(adapter)["r"]) if file_bytes(adapter) is not None else None
    mask = MaskConfig(
        kind=found.mask.kind,
        projection=found.mask.projection,
        tokens_per_tile=found.mask.tokens_per_tile,
    )
    return _Start(mask, found.tile_limit, rank, f"of {config.init}")


def _trial(
    stage: Stage, config: StageConfig, machine: Machine, data: Data, stage1: Stage1Config | None, stage1_source: str
) -> _Trial:
    from ureca.model.internvl.architectures import describe, read_config
    from ureca.model.internvl.presets import preset
    from ureca.model.mask_encoder import MaskEncoderConfig
    from ureca.training.sizing.memory import Setting, Sizes

    chosen = preset(config.preset)
    base: Any = read_config(config.base) if config.base else describe(config.preset)
    vision: Any = base.vision_config
    start = _start(config, stage1, stage1_source)
    mask = MaskEncoderConfig(
        kind=start.mask.kind,
        projection=start.mask.projection,
        tokens_per_tile=start.mask.tokens_per_tile or chosen.tokens_per_tile,
        tile_px=vision.image_size[0],
        hidden_size=base.text_config.hidden_size,
    )
    lora: Any = getattr(config, "lora", None)
    rank = (lora.rank if lora else start.lora_rank) or chosen.lora_rank
    workers = config.workers
    preference: Any = getattr(config, "preference", None)
    tile_limit = config.tile_limit or start.tile_limit or chosen.tile_limit
    if config.batch.regions_per_visit is not None:
        data = replace(data, regions_per_image=min(data.regions_per_image, config.batch.regions_per_visit))
    return _Trial(
        stage=stage,
        name=config.base or config.preset,
        base=base,
        mask=mask,
        sizes=Sizes.of(
            base,
            mask,
            stage=stage,
            lora_rank=rank,
            tune_mask_encoder=bool(getattr(config, "tune_mask_encoder", False)),
        ),
        setting=Setting(
            num_workers=machine.num,
            zero_stage=workers.zero_stage,
            gpu=workers.use_gpu,
            bf16=workers.bf16,
            bf16_masters=workers.use_gpu,
            dropout=lora is not None and lora.dropout > 0,  # stage 3 disables dropout (ureca.model.reference)
            checkpointing=workers.activation_checkpointing,
            offload_optimizer=workers.offload_optimizer,
            offload_weights=workers.offload_weights,
            keeps_image_tokens=bool(workers.image_cache_mb) and workers.zero_stage < 3,
        ),
        tokens=config.batch.tokens_per_device,
        tiles=tile_limit + (1 if tile_limit > 1 else 0),
        data=data,
        branches_per_region=1 + (preference.rejected_per_region if preference else 0),
        in_portions=config.batch.regions_per_visit is not None,
        mask_source=start.source,
    )


def estimate(
    stage: Stage,
    config: StageConfig,
    machine: Machine,
    data: Data,
    *,
    mfu: float,
    stage1: Stage1Config | None = None,
    stage1_source: str = "",
) -> Planned:
    """Estimate memory and time of a stage.

    Args:
        stage1: stage 1's settings, for a later stage whose `init` does not exist yet.
        stage1_source: where these settings come from, for display.

    Raises:
        ConfigError: a microbatch can't hold one image with one region, or the base is unknown.
        CheckpointError: `init` is damaged.
    """
    trial = _trial(stage, config, machine, data, stage1, stage1_source)
    if trial.tokens < trial.min_tokens():
        raise ConfigError(
            f"batch.tokens_per_device={trial.tokens}: one image of {trial.tiles} tiles with one region has "
            f"{trial.min_tokens()} tokens. Raise it to at least that, or lower --tile_limit."
        )
    needed, limit = trial.bytes(), machine.memory_bytes * (1 - HEADROOM)
    hours = None
    if data.regions is not None:
        share = mfu if trial.setting.gpu else 1.0
        seconds = (
            trial.flops_per_region() * data.regions * config.optimizer.epochs / (machine.flops * share * machine.num)
        )
        hours = seconds / 3600
    counts = trial.counts()
    return Planned(
        stage=stage,
        fits=needed <= limit,
        bytes=needed,
        memory=trial.needs(),
        host_bytes=machine.num * (trial.needs().host + 4 * trial.sizes.parameters),
        mask_source=trial.mask_source,
        hours=hours,
        settings={
            "base": trial.name,
            "parameters": trial.sizes.parameters,
            "trained": trial.sizes.trained,
            "bf16": trial.setting.bf16,
            "zero_stage": trial.setting.zero_stage,
            "activation_checkpointing": trial.setting.checkpointing,
            "offload_optimizer": trial.setting.offload_optimizer,
            "offload_weights": trial.setting.offload_weights,
            "tokens_per_device": trial.tokens,
            "images_per_pass": counts.images,
            "regions_per_pass": counts.regions,
            "tiles": trial.tiles,
            "tokens_per_tile": trial.mask.tokens_per_tile,
            "mask_encoder": trial.mask.kind,
            "lora_rank": trial.sizes.lora_rank,
            "epochs": config.optimizer.epochs,
        },
        changes=[] if needed <= limit else list(_changes(trial, limit)),
    )


def _changes(trial: _Trial, limit: float) -> Iterator[dict[str, Any]]:
    """Yield changes that reduce memory, in the order to try them, until the stage fits."""
    from ureca.training.config import WorkersConfig

    together = trial
    for text, change in _ways(trial):
        if any(not hasattr(WorkersConfig, name) for name in re.findall(r"--workers\.(\w+)", text)):
            continue
        alone, joined = change(trial), change(together)
        if alone is None or joined is None or joined.bytes() >= together.bytes():
            continue
        together = joined
        yield {
            "change": text,
            "alone_bytes": alone.bytes(),
            "together_bytes": joined.bytes(),
            "fits": joined.bytes() <= limit,
        }
        if joined.bytes() <= limit:
            return
    smaller = _smaller_base(together, limit)
    if smaller is not None:
        yield {"change": f"--base {smaller[0]}", "alone_bytes": None, "together_bytes": smaller[1], "fits": True}


def _ways(trial: _Trial) -> Iterator[tuple[str, Callable[[_Trial], _Trial | None]]]:
    def setting(**values: Any) -> Any:
        return lambda t: replace(t, setting=replace(t.setting, **values))

    def tokens(number: int) -> Any:
        return lambda t: replace(t, tokens=number) if t.tokens > number else None

    if not trial.setting.checkpointing:
        yield "--workers.activation_checkpointing=true", setting(checkpointing=True)
    number = trial.tokens
    while number > trial.min_tokens():
        number = max(number // 2, trial.min_tokens())
        yield f"--batch.tokens_per_device={number}", tokens(number)
    for stage in range(trial.setting.zero_stage + 1, 4):
        yield f"--workers.zero_stage={stage}", setting(zero_stage=stage, keeps_image_tokens=stage < 3)
    if trial.setting.gpu:
        yield "--workers.offload_optimizer=true", setting(offload_optimizer=True)
        yield "--workers.zero_stage=3 --workers.offload_weights=true", setting(zero_stage=3, offload_weights=True)
    for factor in (2, 4):
        workers = trial.setting.num_workers * factor
        yield f"{workers} {'GPUs' if trial.setting.gpu else 'machines'}", setting(num_workers=workers)


def _smaller_base(trial: _Trial, limit: float) -> tuple[str, float] | None:
    """Return the largest preset of the same series that fits with these settings."""
    from ureca.model.internvl.architectures import describe
    from ureca.model.internvl.presets import PRESETS
    from ureca.training.sizing.memory import Sizes

    series = trial.name.rpartition("-")[0] or "internvl2.5"
    names = [name for name in PRESETS if name.startswith(f"{series}-") and name != trial.name]
    for name in sorted(names, key=lambda n: -float(n.rpartition("-")[2].removesuffix("b"))):
        base: Any = describe(name)
        mask = replace(trial.mask, hidden_size=base.text_config.hidden_size)
        sizes = Sizes.of(
            base,
            mask,
            stage=trial.stage,
            lora_rank=trial.sizes.lora_rank,
            tune_mask_encoder=trial.sizes.mask is not None,
        )
        if sizes.parameters < trial.sizes.parameters:
            needed = replace(trial, base=base, mask=mask, sizes=sizes).bytes()
            if needed <= limit:
                return name, needed
    return None
