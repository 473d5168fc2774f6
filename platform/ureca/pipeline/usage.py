"""The account of a labeling job: what was made, what it took, what it cost, and what more of it would.

`usage.json` in the run's folder:

    table        of the whole table, over all starts: images, regions, captions, set aside, flags, requests, tokens
    start        of this start: the same, with seconds, rates, and what was held
    cost         of this start: energy and money at the prices given
    projection   for as many images as was asked for, at this start's rates
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
    """What things cost, for the ledger's account; 0 leaves it out."""

    per_million_prompt_tokens: float = 0.0
    """In your currency, as are all prices."""
    per_million_completion_tokens: float = 0.0
    per_gpu_hour: float = 0.0
    per_cpu_hour: float = 0.0
    per_kwh: float = 0.0
    """Only if electricity is not in the hours' prices."""
    gpu_watts: float = 700.0
    """Drawn by one GPU while it is held; 700 is the rating of an H100 or H200 (SXM)."""
    cpu_watts: float = 10.0
    """Drawn by one core while it is held, with its share of the machine."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ConfigError(f"prices.{name}={value}: give 0 or more")


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a start held, and for how long."""

    wall_seconds: float
    gpu_seconds: float
    cpu_seconds: float


def counts_of(row: ImageRow) -> Counter[str]:
    """What one image adds to the account. Names with a colon are parts of the name before it."""
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
        made = row.provenance
        for name, parts in (("requests", made.requests or {}), ("retries", made.retries or {})):
            for part, number in parts.items():
                counts[f"{name}:{part}"] += number
                counts[name] += number
        counts["prompt_tokens"] = made.prompt_tokens or 0
        counts["completion_tokens"] = made.completion_tokens or 0
        counts["describer_milliseconds"] = round(1000 * (made.describer_seconds or 0))
    return counts


def quarantined_by(counts: Counter[str]) -> dict[str, int]:
    """Error class -> images set aside for it."""
    of_kinds = {name.partition(":")[2]: number for name, number in counts.items() if name.startswith("quarantined:")}
    return dict(sorted(of_kinds.items()))


def check_not_all_quarantined(table: str, counts: Counter[str], done: str) -> None:
    """Raises InputError with the first reason where not one image of the table could be what `done` says."""
    if counts["images"] == counts["quarantined"]:
        first = next((row.error.message for row in iter_images(table) if row.error), "")
        raise InputError(f"{table}: not one of {counts['images']} images could be {done}. The first: {first}")


def total_counts(rows: Iterable[ImageRow]) -> Counter[str]:
    """The account of a whole table."""
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
    """Write a start's account into the run's folder and print it. `table` as of `make_usage`."""
    now = time.time()
    held = sum(now - since for since in stats.actors.values())
    usage = make_usage(
        stats.counts,
        Held(wall_seconds=wall_seconds, gpu_seconds=held * gpus_per_actor, cpu_seconds=held),
        prices,
        table=table,
        project_images=project_images,
    )
    path = Path(directory) / USAGE_FILE
    write_json(path, usage)
    print("\n".join([*usage_lines(usage), f"account written to {path}"]), file=sys.stderr)


def make_usage(
    start: Counter[str], held: Held, prices: PriceConfig, *, table: Counter[str] | None, project_images: int
) -> dict[str, Any]:
    """The ledger, in JSON's own types. `table`: None where the job has stopped before its table was made."""
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
        share = project_images / images
        more = Held(
            wall_seconds=held.wall_seconds * share,
            gpu_seconds=held.gpu_seconds * share,
            cpu_seconds=held.cpu_seconds * share,
        )
        prompt, completion = start["prompt_tokens"] * share, start["completion_tokens"] * share
        usage["projection"] = {
            "images": project_images,
            "wall_hours_at_this_size": round(more.wall_seconds / 3600, 2),
            "gpu_hours": round(more.gpu_seconds / 3600, 2),
            "captions": round(start["captions"] * share),
            "prompt_tokens": round(prompt),
            "completion_tokens": round(completion),
            **_cost(prompt, completion, more, prices),
        }
    return usage


def usage_lines(usage: Mapping[str, Any]) -> list[str]:
    """The account in a few lines for people."""
    start, cost = usage["start"], usage["cost"]
    lines = [
        f"this start   {start['images']:,} images, {start['regions']:,} regions, {start['captions']:,} captions in "
        f"{start['wall_seconds']:,.0f} s ({start['images_per_second'] or 0:.3g} images/s)",
        f"             {start['requests']:,} questions, {start['retries']:,} of them again"
        f"{_listed(start.get('retries_by'))}; {start['quarantined']:,} images set aside"
        f"{_listed(start.get('quarantined_by'))}; {start['flagged']:,} regions flagged"
        f"{_listed(start.get('flagged_by'))}",
        f"             {start['prompt_tokens']:,} prompt and {start['completion_tokens']:,} completion tokens; "
        f"describer busy {start['describer_seconds']:,.0f} s; {start['cpu_seconds_held'] / 3600:.3g} CPU hours and "
        f"{start['gpu_seconds_held'] / 3600:.3g} GPU hours held",
        f"             about {cost['estimated_kwh']:.3g} kWh, costs {cost['estimated_money']:.4g} at the prices given",
    ]
    if start["captions_per_gpu_hour"] is not None:
        lines.append(f"             {start['captions_per_gpu_hour']:,.0f} captions per GPU hour")
    more = usage["projection"]
    if more:
        lines.append(
            f"projection   {more['images']:,} images: {more['wall_hours_at_this_size']:,.3g} hours at this size, "
            f"{more['prompt_tokens']:,} + {more['completion_tokens']:,} tokens, {more['gpu_hours']:,.3g} GPU hours, "
            f"about {more['estimated_kwh']:,.3g} kWh, {more['estimated_money']:,.4g} at the prices given"
        )
    return lines


def _listed(parts: Mapping[str, int] | None) -> str:
    return f" ({', '.join(f'{name} {number:,}' for name, number in parts.items())})" if parts else ""


def _cost(prompt_tokens: float, completion_tokens: float, held: Held, prices: PriceConfig) -> dict[str, float]:
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
    """Names with a colon go below the name before it, as `NAME_by`."""
    found: dict[str, Any] = {
        name: counts.get(name, 0)
        for name in ("images", "regions", "captions", "verified", "flagged", "quarantined", "requests", "retries")
    }
    found |= {name: counts.get(name, 0) for name in ("prompt_tokens", "completion_tokens")}
    found["describer_seconds"] = round(counts.get("describer_milliseconds", 0) / 1000, 1)
    found["process_deaths"] = counts.get("deaths", 0)
    totals = set(found)
    for name, number in sorted(counts.items()):
        whole, colon, part = name.partition(":")
        if colon:
            found.setdefault(f"{whole}_by" if whole in totals else whole, {})[part] = number
    return found
