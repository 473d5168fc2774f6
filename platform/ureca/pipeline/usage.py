"""Usage report of a corpus job: results, resources, cost, and a projection to more images.

`usage.json` in the run's folder:

    table        entire table, all starts: images, regions, captions, quarantined, flags, requests, tokens
    start        this start: the same, with seconds, rates and resources held
    cost         this start: energy and money at the given prices
    projection   the requested number of images, at this start's rates
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import iter_images
from ureca.errors import ConfigError, InputError
from ureca.pipeline.coordinator import JobStats
from ureca.storage.files import write_json

USAGE_FILE = "usage.json"

_CAPTIONS = ("short_caption", "long_caption", "caption")


@dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """Prices for the usage report; 0 leaves an item out."""

    per_million_prompt_tokens: float = 0.0
    """Price per million prompt tokens; all prices are in your currency."""
    per_million_completion_tokens: float = 0.0
    per_gpu_hour: float = 0.0
    per_cpu_hour: float = 0.0
    per_kwh: float = 0.0
    """Electricity price; set it only if hourly prices exclude electricity."""
    gpu_watts: float = 700.0
    """Power of a GPU while held; 700 W is the rating of an H100 or H200 (SXM)."""
    cpu_watts: float = 10.0
    """Power of a core while held, including its share of the machine."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ConfigError(f"prices.{name}={value}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class HeldResources:
    """Resources that a start held, in seconds."""

    wall_seconds: float
    gpu_seconds: float
    cpu_seconds: float


def counts_of(row: ImageRow) -> Counter[str]:
    """Return an image's contribution to the totals. Names with a colon are parts of the name before it."""
    counts: Counter[str] = Counter(images=1)
    if row.error is not None:
        counts["quarantined"] = counts[f"quarantined:{row.error.kind}"] = 1
    counts["regions"] = len(row.regions)
    for region in row.regions:
        counts["captions"] += sum(getattr(region, name) is not None for name in _CAPTIONS)
        counts["flagged"] += bool(region.flags)
        for flag in region.flags:
            counts[f"flagged:{flag}"] += 1
        counts["verified"] += region.uniqueness is not None
    for note, number in row.notes.items():
        counts[f"notes:{note}"] = number
    if row.provenance is not None:
        provenance = row.provenance
        for name, parts in (("requests", provenance.requests or {}), ("retries", provenance.retries or {})):
            for part, number in parts.items():
                counts[f"{name}:{part}"] += number
                counts[name] += number
        counts["prompt_tokens"] = provenance.prompt_tokens or 0
        counts["completion_tokens"] = provenance.completion_tokens or 0
        counts["describer_milliseconds"] = round(1000 * (provenance.describer_seconds or 0))
    return counts


def quarantined_by(counts: Counter[str]) -> dict[str, int]:
    """Return error class -> quarantined images."""
    by_kind = {name.partition(":")[2]: number for name, number in counts.items() if name.startswith("quarantined:")}
    return dict(sorted(by_kind.items()))


def check_not_all_quarantined(table: str, counts: Counter[str], done: str) -> None:
    """Raise InputError with the first reason if no image of the table could be processed.

    `done`: past participle for the message, e.g. "labeled".
    """
    if counts["images"] == counts["quarantined"]:
        first = next((row.error.message for row in iter_images(table) if row.error), "")
        raise InputError(f"{table}: none of the {counts['images']} images could be {done}. The first error: {first}")


def total_counts(rows: Iterable[ImageRow]) -> Counter[str]:
    """Return the totals of an entire table."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(counts_of(row))
    return total


def write_usage(
    directory: str | os.PathLike[str],
    stats: JobStats,
    *,
    wall_seconds: float,
    gpus_per_actor: float,
    prices: PriceConfig,
    project_images: int,
    table: Counter[str] | None,
) -> None:
    """Write a start's usage report into the run's folder and print it; `table` as in `make_usage`."""
    now = time.time()
    held = sum(now - since for since in stats.actors.values())
    usage = make_usage(
        stats.counts,
        HeldResources(wall_seconds=wall_seconds, gpu_seconds=held * gpus_per_actor, cpu_seconds=held),
        prices,
        table=table,
        project_images=project_images,
    )
    path = Path(directory) / USAGE_FILE
    write_json(path, usage)
    print("\n".join([*usage_lines(usage), f"usage written to {path}"]), file=sys.stderr)


def make_usage(
    start: Counter[str], held: HeldResources, prices: PriceConfig, *, table: Counter[str] | None, project_images: int
) -> dict[str, Any]:
    """Build the usage report in JSON types. `table` is None if the job stopped before its table was written."""
    images, hours = start["images"], held.gpu_seconds / 3600
    usage: dict[str, Any] = {
        "table": None if table is None else _nested(table),
        "start": {
            **_nested(start),
            "wall_seconds": round(held.wall_seconds, 1),
            "images_per_second": _rate(images, held.wall_seconds),
            "captions_per_second": _rate(start["captions"], held.wall_seconds),
            "gpu_seconds_held": round(held.gpu_seconds, 1),
            "cpu_seconds_held": round(held.cpu_seconds, 1),
            "captions_per_gpu_hour": _rate(start["captions"], hours),
            "describer_requests_at_once": _rate(start["describer_milliseconds"] / 1000, held.wall_seconds),
        },
        "cost": _cost(start["prompt_tokens"], start["completion_tokens"], held, prices),
        "prices": dict(vars(prices)),
        "projection": None,
    }
    if project_images and images:
        scale = project_images / images
        projected = HeldResources(
            wall_seconds=held.wall_seconds * scale,
            gpu_seconds=held.gpu_seconds * scale,
            cpu_seconds=held.cpu_seconds * scale,
        )
        prompt, completion = start["prompt_tokens"] * scale, start["completion_tokens"] * scale
        usage["projection"] = {
            "images": project_images,
            "wall_hours_at_this_size": round(projected.wall_seconds / 3600, 2),
            "gpu_hours": round(projected.gpu_seconds / 3600, 2),
            "captions": round(start["captions"] * scale),
            "prompt_tokens": round(prompt),
            "completion_tokens": round(completion),
            **_cost(prompt, completion, projected, prices),
        }
    return usage


def usage_lines(usage: Mapping[str, Any]) -> list[str]:
    """Format the report in a few lines."""
    start, cost = usage["start"], usage["cost"]
    lines = [
        f"this start   {start['images']:,} images, {start['regions']:,} regions, {start['captions']:,} captions in "
        f"{start['wall_seconds']:,.0f} s ({start['images_per_second'] or 0:.3g} images/s)",
        f"             {start['requests']:,} requests, {start['retries']:,} of them "
        f"retries{_listed(start.get('retries_by'))}; {start['quarantined']:,} images "
        f"quarantined{_listed(start.get('quarantined_by'))}; {start['flagged']:,} regions "
        f"flagged{_listed(start.get('flagged_by'))}",
        f"             {start['prompt_tokens']:,} prompt and {start['completion_tokens']:,} completion tokens; "
        f"describer busy {start['describer_seconds']:,.0f} s; {start['cpu_seconds_held'] / 3600:.3g} CPU hours and "
        f"{start['gpu_seconds_held'] / 3600:.3g} GPU hours held",
        f"             about {cost['estimated_kwh']:.3g} kWh, cost {cost['estimated_money']:.4g} at the given prices",
    ]
    if start["captions_per_gpu_hour"] is not None:
        lines.append(f"             {start['captions_per_gpu_hour']:,.0f} captions per GPU hour")
    projected = usage["projection"]
    if projected:
        lines.append(
            f"projection   {projected['images']:,} images: {projected['wall_hours_at_this_size']:,.3g} hours at this "
            f"size, {projected['prompt_tokens']:,} + {projected['completion_tokens']:,} tokens, "
            f"{projected['gpu_hours']:,.3g} GPU hours, about {projected['estimated_kwh']:,.3g} kWh, "
            f"{projected['estimated_money']:,.4g} at the given prices"
        )
    return lines


def _listed(parts: Mapping[str, int] | None) -> str:
    return f" ({', '.join(f'{name} {number:,}' for name, number in parts.items())})" if parts else ""


def _cost(prompt_tokens: float, completion_tokens: float, held: HeldResources, prices: PriceConfig) -> dict[str, float]:
    gpu_hours, cpu_hours = held.gpu_seconds / 3600, held.cpu_seconds / 3600
    kwh = (gpu_hours * prices.gpu_watts + cpu_hours * prices.cpu_watts) / 1000
    money = (
        prompt_tokens / 1e6 * prices.per_million_prompt_tokens
        + completion_tokens / 1e6 * prices.per_million_completion_tokens
        + gpu_hours * prices.per_gpu_hour
        + cpu_hours * prices.per_cpu_hour
        + kwh * prices.per_kwh
    )
    return {"estimated_kwh": round(kwh, 4), "estimated_money": round(money, 4)}


def _rate(number: float, per: float) -> float | None:
    return round(number / per, 4) if per else None


def _nested(counts: Mapping[str, int]) -> dict[str, Any]:
    """Nest names with a colon below the name before it, as `NAME_by`."""
    nested: dict[str, Any] = {
        name: counts.get(name, 0)
        for name in ("images", "regions", "captions", "verified", "flagged", "quarantined", "requests", "retries")
    }
    nested |= {name: counts.get(name, 0) for name in ("prompt_tokens", "completion_tokens")}
    nested["describer_seconds"] = round(counts.get("describer_milliseconds", 0) / 1000, 1)
    nested["process_crashes"] = counts.get("crashes", 0)
    totals = set(nested)
    for name, number in sorted(counts.items()):
        total, colon, part = name.partition(":")
        if colon:
            nested.setdefault(f"{total}_by" if total in totals else total, {})[part] = number
    return nested
