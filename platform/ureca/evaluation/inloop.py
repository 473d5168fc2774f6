"""Fast scores of a few captions, without Java, for evaluation during training.

    rouge_l              mean ROUGE-L (pycocoevalcap's) over words split by a pattern instead of the PTB tokenizer
    attribute_accuracy   as in `ureca.evaluation.uniqueness`; only with ground truth (synthetic scenes)
    uniqueness           as there

On plain captions the pattern and the tokenizer agree (tests/evaluation/test_inloop.py); on others ROUGE-L may differ in
the third digit from that of jobs/evaluate.py. Every score is a sum over captions divided by a count, so workers that
each scored a part can add their sums.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pycocoevalcap.rouge.rouge import Rouge

from ureca.evaluation.uniqueness import ScoredCaption, attribute_statistics, picks_own

QUICK_METRICS = ("rouge_l", "attribute_accuracy", "uniqueness")

Sums = Mapping[str, tuple[float, float]]
"""Metric -> (sum, count)."""

# Letters and digits of any script, with inner hyphens; "thing's" is two words, as in the PTB tokenizer.
_WORD = re.compile(r"\w+(?:-\w+)*|'\w+")


def quick_scores(items: Sequence[ScoredCaption]) -> dict[str, float]:
    """Return the scores of some captions, each in 0..1; inapplicable scores are omitted."""
    return scores_of([quick_sums(items)])


def quick_sums(items: Sequence[ScoredCaption]) -> dict[str, tuple[float, float]]:
    """Return sums and counts from which the scores of some captions are computed."""
    right, asked = attribute_statistics(items)["all"].per_item.sum(axis=0).tolist() if items else (0.0, 0.0)
    return {
        "rouge_l": (sum(_rouge_l(item.caption, item.reference) for item in items), float(len(items))),
        "attribute_accuracy": (right, asked),
        "uniqueness": (float(sum(picks_own(item) for item in items)), float(len(items))),
    }


def scores_of(parts: Iterable[Sums]) -> dict[str, float]:
    """Return the scores of all captions of several parts."""
    totals = dict.fromkeys(QUICK_METRICS, (0.0, 0.0))
    for part in parts:
        for name, (value, count) in part.items():
            totals[name] = (totals[name][0] + value, totals[name][1] + count)
    return {name: value / count for name, (value, count) in totals.items() if count}


def _rouge_l(caption: str, reference: str) -> float:
    words, wanted = (" ".join(_WORD.findall(text.lower())) for text in (caption, reference))
    return float(Rouge().calc_score([words], [wanted])) if words and wanted else 0.0
