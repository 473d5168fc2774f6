"""`ureca plan`: check whether a training fits the given GPUs, estimate its duration, suggest changes.

The estimates are in `ureca.training.sizing.estimate`; this module parses the command line and prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ureca.config import find_config, load_config, read_config
from ureca.errors import ConfigError
from ureca.hardware import Accelerator, parse_gpus
from ureca.training.sizing.estimate import (
    CAPTION_TOKENS,
    CPU_FLOPS,
    MFU,
    REGIONS_PER_IMAGE,
    Data,
    Machine,
    Planned,
    Stage,
    estimate,
)

if TYPE_CHECKING:
    from ureca.training.config import Stage1Config, StageConfig


_CHARACTERS_PER_TOKEN = 4.5


def plan(argv: list[str]) -> int:
    """Run the subcommand; return the exit code: 0 fits, 1 does not.

    Raises:
        UrecaError: unknown base, GPU or setting.
    """
    options, overrides = _parser().parse_known_args(argv)
    cpu = options.gpus.strip().lower() in ("none", "cpu")
    stages: tuple[Stage, ...] = (options.stage,) if options.stage else _stages_of(options.config)
    if not 0 < options.mfu <= 1:
        raise ConfigError(f"--mfu={options.mfu}: must be above 0 and at most 1 (share of the peak).")
    of_mask, others = _split_mask(overrides)
    planned: list[Planned] = []
    machine = data = None
    before: tuple[Any, str] = (None, "")
    for stage in stages:
        config = _stage_config(stage, options, overrides if stage == 1 else others, cpu=cpu)
        machine = _machine(options, config, cpu=cpu)
        data = data or _data(options, config)
        if stage > 1 and 1 not in stages:
            before = _stage1(options, config, of_mask)
        stage1, source = before
        planned.append(estimate(stage, config, machine, data, mfu=options.mfu, stage1=stage1, stage1_source=source))
        if stage == 1:
            before = config, "of stage 1"
    assert machine is not None
    assert data is not None
    if options.json:
        print(json.dumps({"machine": asdict(machine), "data": asdict(data), "stages": [asdict(p) for p in planned]}))
    else:
        print("\n".join(_lines(planned, machine, data, mfu=options.mfu)))
    return 0 if all(stage.fits for stage in planned) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca plan",
        description="Check whether a training fits the given GPUs, estimate its hours, and suggest changes.",
        epilog="Any setting of the stages may follow, e.g. --workers.zero_stage=2 or --batch.tokens_per_device=4096. "
        "For stages 2 and 3 also stage 1's --mask settings, which describe the mask encoder while --init does "
        "not exist yet.",
    )
    parser.add_argument("--gpus", required=True, metavar="8xA100-80GB", help="number and kind; none: CPUs")
    parser.add_argument("--base", metavar="NAME_OR_FOLDER", help="preset, or folder with config.json")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), help="default: the recipe's; otherwise 1 and 2")
    parser.add_argument("--config", metavar="NAME", help="recipe of jobs/configs, or your YAML")
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--regions", type=int, metavar="N", help="regions to train on, to estimate hours")
    how_many.add_argument("--table", metavar="PATH", help="region table to count them in")
    parser.add_argument("--memory_gb", type=float, metavar="GIB", help="memory of an unknown GPU, or of the machine")
    parser.add_argument("--tflops", type=float, metavar="N", help="peak of an unknown GPU in bfloat16")
    parser.add_argument("--mfu", type=float, default=MFU, help=f"share of the peak that is reached; default {MFU}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


# ---- command line


def _stages_of(config: str | None) -> tuple[Stage, ...]:
    if config is None:
        return (1, 2)
    text = Path(path).read_text(encoding="utf-8") if Path(path := find_config(config)).is_file() else ""
    named = re.search(r"train_stage([123])", f"{Path(path).stem} {text}") or re.search(r"stage([123])", Path(path).stem)
    if named is None:
        raise ConfigError(f"--config {config}: neither its name nor its first line names a stage. Set --stage.")
    return (int(named[1]),)  # type: ignore[return-value]


def _split_mask(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Split off the settings of the `mask` section, which only stage 1 has."""
    of_mask: list[str] = []
    others: list[str] = []
    rest = iter(overrides)
    for argument in rest:
        chosen = of_mask if argument.startswith("--mask.") else others
        chosen.append(argument)
        if argument.startswith("--") and "=" not in argument and (value := next(rest, None)) is not None:
            chosen.append(value)
    return of_mask, others


def _stage1(options: argparse.Namespace, config: StageConfig, of_mask: list[str]) -> tuple[Stage1Config | None, str]:
    """Return stage 1's configuration for a later stage, and its source: the command line, or the recipe next to its
    own."""
    from ureca.training.config import Stage1Config

    arguments = ["--table=-", f"--preset={config.preset}", f"--base={config.base or 'null'}", *of_mask]
    path = Path(find_config(options.config)) if options.config else Path()
    sibling = path.with_name(re.sub(r"stage[23]", "stage1", path.name)) if options.config else path
    source = " ".join(of_mask)
    if sibling != path and sibling.is_file():
        arguments = ["--config", str(sibling), *arguments]
        source = source or f"of {sibling.stem}"
    return (load_config(Stage1Config, arguments), source) if source else (None, "")


def _data(options: argparse.Namespace, config: StageConfig) -> Data:
    if options.table is None:
        if options.regions is not None and options.regions < 1:
            raise ConfigError(f"--regions={options.regions}: must be at least 1.")
        return Data(
            regions=options.regions,
            regions_per_image=REGIONS_PER_IMAGE,
            caption_tokens=CAPTION_TOKENS,
            source="assumed",
        )
    import pyarrow.compute as pc

    from ureca.corpus.split import split_heldout
    from ureca.corpus.table import iter_batches

    ids: list[str] = []
    regions_of: dict[str, int] = {}
    """Regions per labeled image."""
    characters = 0
    for batch in iter_batches(options.table):
        ids += batch["image_id"].to_pylist()
        labeled = batch.filter(pc.equal(batch["status"], "labeled"))
        each = pc.list_flatten(labeled["regions"])
        counts = pc.fill_null(pc.list_value_length(labeled["regions"]), 0)
        regions_of.update(zip(labeled["image_id"].to_pylist(), counts.to_pylist(), strict=True))
        lengths = [pc.sum(pc.utf8_length(each.field(name))).as_py() or 0 for name in ("short_caption", "long_caption")]
        # Styles are drawn 1 : 1 : 2.
        characters += sum(lengths) + 2 * (pc.sum(pc.utf8_length(each.field("caption"))).as_py() or 0)
    all_regions = sum(regions_of.values())
    # Like training: by the ids of all images, labeled or not.
    out = set(split_heldout(ids, config.heldout, config.heldout_seed).heldout) if config.heldout else set()
    learned = [count for image_id, count in regions_of.items() if image_id not in out]
    if not sum(learned):
        raise ConfigError(
            f"--table={options.table}: no labeled region outside the held-out share. Write captions with "
            "jobs/label_corpus.py, or lower --heldout."
        )
    return Data(
        regions=sum(learned),
        regions_per_image=sum(learned) / len(learned),
        caption_tokens=characters / 4 / all_regions / _CHARACTERS_PER_TOKEN + 1,
        source=f"{options.table}: {len(regions_of):,} labeled images, {len(regions_of) - len(learned):,} held out",
    )


def _stage_config(stage: Stage, options: argparse.Namespace, overrides: list[str], *, cpu: bool) -> StageConfig:
    """Build the stage's configuration: recipe, then machine defaults, then command line."""
    from ureca.training.config import Stage1Config, Stage2Config, Stage3Config

    cls: Any = {1: Stage1Config, 2: Stage2Config, 3: Stage3Config}[stage]
    given = read_config(find_config(options.config)) if options.config else {}
    arguments = ["--config", options.config] if options.config else []
    if "table" not in given:
        arguments.append("--table=-")
    if stage > 1 and "init" not in given:
        arguments.append("--init=-")
    if not cpu:
        num, _ = _gpus(options)
        arguments += [f"--workers.num_workers={num}", "--workers.use_gpu=true"]
    if not options.config:
        arguments.append(f"--workers.bf16={'false' if cpu else 'true'}")
    if options.base is not None:
        is_folder = Path(options.base).is_dir()
        arguments += [f"--base={options.base}"] if is_folder else [f"--preset={options.base}", "--base=null"]
    elif not options.config:
        raise ConfigError("--base is missing: set a preset (internvl2.5-8b), a folder with config.json, or --config.")
    return load_config(cls, [*arguments, *overrides])


def _gpus(options: argparse.Namespace) -> tuple[int, Accelerator]:
    try:
        return parse_gpus(options.gpus)
    except ConfigError:
        number = re.match(r"\s*(?:([1-9]\d*)\s*[x*])?\s*([A-Za-z].*)", options.gpus)
        if number is None or options.memory_gb is None or options.tflops is None:
            raise
        peak = options.tflops * 1e12
        own = Accelerator(name=number[2], memory_gib=options.memory_gb, bf16_flops=peak, fp32_flops=peak / 16)
        return int(number[1] or 1), own


def _machine(options: argparse.Namespace, config: StageConfig, *, cpu: bool) -> Machine:
    for name in ("memory_gb", "tflops"):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"--{name}={value}: must be a number above 0.")
    if cpu:
        from ureca.hardware import capture_context

        memory = options.memory_gb * 2**30 if options.memory_gb else capture_context()["memory_bytes"]
        if memory is None:
            raise ConfigError("--gpus=none: this machine's memory can't be detected. Set --memory_gb.")
        workers = config.workers.num_workers
        return Machine(name="CPU", num=workers, memory_bytes=memory / workers, flops=CPU_FLOPS)
    num, gpu = _gpus(options)
    if config.workers.bf16 and gpu.bf16_flops is None:
        raise ConfigError(f"--gpus={options.gpus}: a {gpu.name} has no bfloat16. Set --workers.bf16=false.")
    memory = options.memory_gb or gpu.memory_gib
    peak = gpu.bf16_flops if config.workers.bf16 and gpu.bf16_flops else gpu.fp32_flops
    return Machine(name=gpu.name, num=num, memory_bytes=memory * 2**30, flops=peak)


# ---- output


def _lines(planned: list[Planned], machine: Machine, data: Data, *, mfu: float) -> Iterator[str]:
    from ureca.training.sizing.memory import CONTEXT_BYTES, Memory

    gpu = machine.name != "CPU"
    first = planned[0].settings
    which = f"{machine.num} x {machine.name}" if gpu else f"{machine.num} CPU workers"
    yield f"{first['base']}, {first['parameters'] / 1e9:.2f} billion parameters, on {which}"
    yield ""
    yield f"GiB a {'GPU' if gpu else 'worker':<12}" + "".join(f"  stage {p.stage:<4}" for p in planned)
    for field in dataclasses.fields(Memory):
        if field.name != "host":
            cells = "".join(f"{getattr(p.memory, field.name) / 2**30:9.1f}   " for p in planned)
            yield f"  {field.name:<16}{cells}"
    if gpu:
        yield f"  {'CUDA, NCCL':<16}" + "".join(f"{CONTEXT_BYTES / 2**30:9.1f}   " for _ in planned)
    yield f"  {'most':<16}" + "".join(f"{p.bytes / 2**30:9.1f}   " for p in planned)
    of = machine.memory_bytes / 2**30
    yield f"  {f'of {of:.1f}':<16}" + "".join(f"{'fits' if p.fits else 'too much':>9}   " for p in planned)
    yield ""
    for p in planned:
        s = p.settings
        features = [
            "bf16" if s["bf16"] else "float32",
            f"ZeRO {s['zero_stage']}",
            *(["activation checkpointing"] if s["activation_checkpointing"] else []),
            *(["optimizer offloaded"] if s["offload_optimizer"] else []),
            *(["weights offloaded"] if s["offload_weights"] else []),
        ]
        microbatch = (
            f"microbatches of {s['tokens_per_device']:,} tokens (images {s['images_per_pass']}, "
            f"regions {s['regions_per_pass']})"
        )
        encoder = f"mask encoder {s['mask_encoder']}{f' ({p.mask_source})' if p.mask_source else ''}"
        lora = f", LoRA {s['lora_rank']}" if s["lora_rank"] else ""
        yield (
            f"stage {p.stage}: {', '.join(features)}; {microbatch}, {s['tiles']} tiles, N {s['tokens_per_tile']}, "
            f"{encoder}{lora}; {s['trained'] / 1e6:,.0f}M weights train"
        )
        if p.hours is not None:
            rate = f"{mfu:.0%} of its peak" if gpu else f"{CPU_FLOPS / 1e9:.0f} GFLOP/s a worker"
            over = f"{data.regions:,} regions, epochs {s['epochs']:g}"
            yield f"         {_hours(p.hours)} for {over}, at {rate} (assumed)"
    yield (
        f"data: {data.regions_per_image:.1f} regions per image, captions of {data.caption_tokens:.0f} tokens "
        f"({data.source}); images with the most tiles"
    )
    host = max(p.host_bytes for p in planned)
    yield f"host memory: {host / 2**30:,.0f} GiB at the start, if all {machine.num} workers are on one machine"
    for p in planned:
        if not p.fits:
            yield from _advice(p)


def _advice(p: Planned) -> Iterator[str]:
    yield ""
    yield f"stage {p.stage} does not fit. Changes, in this order:   GiB alone   combined"
    for change in p.changes:
        alone = "" if change["alone_bytes"] is None else f"{change['alone_bytes'] / 2**30:.1f}"
        joined = f"{change['together_bytes'] / 2**30:.1f}{'  fits' if change['fits'] else ''}"
        yield f"  {change['change']:<56} {alone:>9}   {joined:>9}"
    if not any(change["fits"] for change in p.changes):
        yield "  No change makes it fit: use GPUs with more memory."


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 0.1 else f"{hours * 60:.1f} minutes"
