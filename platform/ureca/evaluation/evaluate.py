"""Caption held-out regions with every variant and score them with confidence intervals.

    none          the untuned base, asked about the whole image: no region
    box           the untuned base, asked about the region's box in words
    tuned_none    stage 2 without a region cue: what the labels' style alone is worth
    tuned_box     stage 2 with the region's box in words: what a box is worth after the same training
    mask_stage1   the mask encoder trained, the rest frozen
    mask_stage2   and LoRA on the language model
    mask_stage3   and preference tuning
    mask_longer   its control: the same number of additional steps, on captions alone

`none` and `mask_stage2` are the ends of the paper's Table 4 (URECA, arXiv 2504.05305); `tuned_none` and `tuned_box` are
controls that it lacks. Captions answer the `unique` query and are compared with the labels' unique captions.

Scores are in 0..1, `cider` is CIDEr / 10. Synthetic scenes and photos are scored separately, because CIDEr weighs words
by their set and only synthetic scenes have ground truth: `scores` are those of the synthetic scenes, or of the photos
if there are none. Intervals: `ureca.evaluation.bootstrap`; seeds, attributes and strata: `ureca.evaluation.aggregate`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ureca.corpus.schema import ImageRow
from ureca.corpus.table import load_image
from ureca.errors import InputError
from ureca.evaluation.aggregate import METRICS, ScoredGroup, ScoreTable, Strata, scored_group, strata_of
from ureca.evaluation.bootstrap import Bootstrap, Statistics, mean_statistics
from ureca.evaluation.labels import METRIC_LABELS, VARIANT_LABELS
from ureca.evaluation.metrics import CaptionScorer, find_java
from ureca.evaluation.predictions import Prediction, Variant, captioned_regions, predict
from ureca.evaluation.uniqueness import (
    Candidates,
    ScoredCaption,
    Truth,
    attribute_statistics,
    picks_own,
    region_candidates,
)
from ureca.runs import Progress
from ureca.storage.files import write_json

PRINTED_DIFFERENCES = ("rouge_l", "meteor", "attribute_accuracy", "uniqueness")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of all variants."""

    groups: dict[str, ScoredGroup]
    """`drawn` (synthetic scenes) and `photo`, if present."""
    predictions: list[Prediction]
    picks_own: dict[tuple[str, str, str], bool] = field(repr=False)
    """(variant, image id, region id) -> True if the caption fits that region only; for a variant's first seed."""
    left_out: dict[str, str]
    """Image id -> reason why it was skipped."""

    @property
    def main(self) -> ScoredGroup:
        """Synthetic scenes, or the photos if there are none."""
        return self.groups.get("drawn") or self.groups["photo"]

    @property
    def scores(self) -> ScoreTable:
        return self.main.scores

    def captions_of(self, image_id: str) -> dict[str, dict[str, str]]:
        """Return variant -> region id -> caption of its first seed, for the report."""
        found: dict[str, dict[str, str]] = {}
        for each in self.predictions:
            if each.image_id == image_id and each.seed == self.first_seed(each.variant):
                found.setdefault(each.variant, {})[each.region_id] = each.caption
        return found

    def first_seed(self, variant: str) -> int:
        """Return the seed whose captions are shown if there are several."""
        return min(self.main.seeds[variant])

    def picks_own_of(self, image_id: str) -> dict[str, dict[str, bool]]:
        """Return variant -> region id -> True if its caption fits that region only."""
        found: dict[str, dict[str, bool]] = {}
        for (variant, image, region), own in self.picks_own.items():
            if image == image_id:
                found.setdefault(variant, {})[region] = own
        return found

    def summary(self) -> dict[str, Any]:
        """Content of summary.json: scores of the main group, differences as [value, low, high]."""
        differences: dict[str, dict[str, list[float]]] = {}
        for each in self.main.differences:
            pair = differences.setdefault(f"{each['better']} - {each['worse']}", {})
            pair[each["metric"]] = [round(each[end], 6) for end in ("value", "low", "high")]

        def values(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
            return {metric: round(each["value"], 6) for metric, each in scores.items()}

        return {
            "metrics": {"meteor": "METEOR 1.5 (Java)", "cider": "CIDEr / 10"},
            "images": self.main.num_images,
            "regions": self.main.num_regions,
            "left_out": len(self.left_out),
            "scores": {variant: values(scores) for variant, scores in self.main.scores.items()},
            "ceiling": values(self.main.ceiling),
            "differences": differences,
        }

    def details(self) -> dict[str, Any]:
        """Content of scores.json: every group with its intervals, and the skipped images."""
        return {
            "metrics": {"meteor": "METEOR 1.5 (Java)", "cider": "CIDEr / 10"},
            "groups": {kind: vars(group) for kind, group in self.groups.items()},
            "left_out": self.left_out,
        }

    def table(self) -> str:
        """Return the scores with their intervals as text."""
        parts = []
        for kind, group in self.groups.items():
            title = {"drawn": "drawn scenes", "photo": "real photos"}[kind]
            parts.append(f"{title}: {group.num_regions:,} regions of {group.num_images:,} images, 95% intervals")
            parts.append(_as_table({**group.scores, "labels": group.ceiling}))
            parts += _difference_lines(group)
            parts.append("")
        return "\n".join(parts)


def evaluate(
    variants: Sequence[Variant],
    rows: Sequence[ImageRow],
    *,
    output: Path,
    truth: Mapping[str, Truth] | None = None,
    strata: Strata | None = None,
    max_new_tokens: int = 96,
    processes: int = 1,
    seed: int = 0,
) -> Evaluation:
    """Caption the labeled regions of `rows` with each variant and score them.

    Writes predictions.jsonl, from which an interrupted evaluation resumes, and scores.json into `output`. Variants with
    one name and several seeds are scored together. Images that can't be read or have no label are skipped and listed.

    Args:
        truth: image id -> true attributes of its regions; overrides those in the table.
        strata: further kinds of regions to score separately.
        processes: number of captioning processes, each with its own model.

    Raises:
        InputError: no image is left.
        MetricError: Java is missing.
    """
    find_java()  # fail before captioning if it is missing
    usable, candidates, left_out = _usable(rows, truth or {})
    if not usable:
        reason = next((f"{image}: {why}" for image, why in left_out.items()), "there are none")
        raise InputError(
            f"nothing to evaluate: of {len(rows)} held-out images none is both labeled and readable ({reason}). Label "
            "the images first, or increase heldout."
        )
    output.mkdir(parents=True, exist_ok=True)
    predictions = predict(
        variants, usable, output / "predictions.jsonl", max_new_tokens=max_new_tokens, processes=processes
    )
    groups, owned = score(usable, candidates, predictions, strata=strata, seed=seed)
    evaluation = Evaluation(groups=groups, predictions=predictions, picks_own=owned, left_out=left_out)
    write_json(str(output / "scores.json"), evaluation.details())
    return evaluation


def score(
    rows: Sequence[ImageRow],
    candidates: Mapping[str, Candidates],
    predictions: Sequence[Prediction],
    *,
    strata: Strata | None = None,
    seed: int = 0,
) -> tuple[dict[str, ScoredGroup], dict[tuple[str, str, str], bool]]:
    """Score captions group by group, including self-retrieval. `candidates`: by image id."""
    captions = {(each.variant, each.seed, each.image_id, each.region_id): each.caption for each in predictions}
    runs = sorted(dict.fromkeys((each.variant, each.seed) for each in predictions), key=lambda run: run[1])
    kinds: dict[str, list[ImageRow]] = {}
    for row in rows:
        drawn = any(true is not None for true in candidates[row.image_id].truth)
        kinds.setdefault("drawn" if drawn else "photo", []).append(row)
    groups: dict[str, ScoredGroup] = {}
    owned: dict[tuple[str, str, str], bool] = {}
    progress = Progress("score", len(kinds) * len(runs), unit="variants")
    done = 0
    with CaptionScorer() as scorer:
        for kind in sorted(kinds):
            regions = [(row, index) for row in kinds[kind] for index in captioned_regions(row)]
            # in the order of the variants, independent of their seeds
            statistics: dict[str, dict[int, dict[str, Statistics]]] = {each.variant: {} for each in predictions}
            for variant, run in runs:
                items = [
                    _item(row, index, candidates, captions[variant, run, row.image_id, row.regions[index].region_id])
                    for row, index in regions
                ]
                own = [picks_own(item) for item in items]
                scores = scorer.score([each.caption for each in items], [[each.reference] for each in items])
                statistics[variant][run] = {**scores.statistics, **_claim_statistics(items, own)}
                for (row, index), picked in zip(regions, own, strict=True):
                    owned.setdefault((variant, row.image_id, row.regions[index].region_id), picked)
                done += 1
                progress.update(done, images=kind)
            labels = [_item(row, index, candidates, row.regions[index].caption or "") for row, index in regions]
            ceiling = _claim_statistics(labels, [picks_own(item) for item in labels])
            bootstrap = Bootstrap([row.image_id for row, _ in regions], seed=seed)
            groups[kind] = scored_group(
                bootstrap,
                statistics,
                ceiling,
                [_strata(row, index, candidates, strata or {}) for row, index in regions],
            )
    progress.close()
    return groups, owned


def _usable(
    rows: Sequence[ImageRow], truth: Mapping[str, Truth]
) -> tuple[list[ImageRow], dict[str, Candidates], dict[str, str]]:
    usable: list[ImageRow] = []
    candidates: dict[str, Candidates] = {}
    left_out: dict[str, str] = {}
    progress = Progress("measure", len(rows), unit="images")
    for number, row in enumerate(rows, start=1):
        try:
            if not captioned_regions(row):
                raise InputError(row.error.message if row.error else f"{row.status}, no region has a caption")
            candidates[row.image_id] = region_candidates(load_image(row), row, truth.get(row.image_id))
            usable.append(row)
        except InputError as error:
            left_out[row.image_id] = str(error)
            print(f"skipped {row.image_id}: {error}", file=sys.stderr)
        progress.update(number, left_out=len(left_out))
    progress.close()
    return usable, candidates, left_out


def _item(row: ImageRow, index: int, candidates: Mapping[str, Candidates], caption: str) -> ScoredCaption:
    return ScoredCaption(caption, row.regions[index].caption or "", index, candidates[row.image_id])


def _claim_statistics(items: Sequence[ScoredCaption], own: Sequence[bool]) -> dict[str, Statistics]:
    """Return the statistics of uniqueness and attribute accuracy, each attribute under "attribute:NAME"."""
    accuracy = attribute_statistics(items)
    return {
        "attribute_accuracy": accuracy.pop("all"),
        "uniqueness": mean_statistics([float(picked) for picked in own]),
        **{f"attribute:{name}": each for name, each in accuracy.items()},
    }


def _strata(row: ImageRow, index: int, candidates: Mapping[str, Candidates], known: Strata) -> dict[str, str]:
    further = known.get(row.image_id, {}).get(row.regions[index].region_id)
    return strata_of(row, index, candidates[row.image_id].truth[index], further)


def _difference_lines(group: ScoredGroup) -> list[str]:
    return [
        f"{METRIC_LABELS[each['metric']]}: {each['better']} - {each['worse']} "
        f"{each['value']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}]"
        for each in group.differences
        if each["metric"] in PRINTED_DIFFERENCES
    ]


def _as_table(scores: ScoreTable) -> str:
    columns = [name for name in METRICS if any(name in of for of in scores.values())]
    rows = [["", *(METRIC_LABELS[name] for name in columns)]]
    for variant, of in scores.items():
        cells = [
            f"{of[name]['value']:.3f} [{of[name]['low']:.3f}, {of[name]['high']:.3f}]" if name in of else "-"
            for name in columns
        ]
        rows.append([f"{variant} ({VARIANT_LABELS[variant]})" if variant in VARIANT_LABELS else variant, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
